"""Two tasks as prompts of tokens with corrupted twins: who is given something, and what colour an object has.

Indirect object identification (Wang et al. 2022, arXiv 2211.00593): two names, one of which comes again and gives; the
other is who is given to. Coloured objects (Merullo et al. 2024, arXiv 2310.08744): three objects, one worked question
and another.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

Encode = Callable[[str], list[int]]

NAMES = (
    "Aaron Adam Alan Alex Alice Amy Andrew Anna Anthony Arthur Austin Brian Charles Charlie Daniel David Edward "
    "Elizabeth Emily Eric Frank George Henry Jack Jacob James Jane Jason Jennifer Jessica John Jonathan Joseph Joshua "
    "Justin Kate Kevin Laura Lisa Louis Luke Maria Mark Martin Mary Matthew Michael Michelle Patrick Paul Peter Rachel "
    "Richard Robert Rose Ruby Ryan Sarah Scott Simon Stephen Thomas Tyler Victoria William"
)
PLACES = ("store", "garden", "restaurant", "school", "hospital", "office", "house", "station")
GIFTS = ("ring", "kiss", "bone", "basketball", "computer", "necklace", "drink", "snack")
STORIES = (
    "Then, {first} and {second} went to the {place}. {giver} gave a {gift} to",
    "Then, {first} and {second} had a lot of fun at the {place}. {giver} gave a {gift} to",
    "Then, {first} and {second} were working at the {place}. {giver} decided to give a {gift} to",
    "Then, {first} and {second} were thinking about going to the {place}. {giver} wanted to give a {gift} to",
    "After {first} and {second} went to the {place}, {giver} gave a {gift} to",
    "When {first} and {second} got a {gift} at the {place}, {giver} decided to give it to",
    "While {first} and {second} were working at the {place}, {giver} gave a {gift} to",
    "Friends {first} and {second} found a {gift} at the {place}. {giver} gave it to",
)
OBJECTS = (
    "pencil notebook pen cup plate jug mug puzzle textbook leash necklace bracelet bottle ball envelope lighter bowl"
)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black")
SURFACES = ("table", "desk", "floor")
SEEN = ("there is", "you see", "I see")


class Prompts(NamedTuple):
    """Prompts of one task, padded behind, and twins of them that are as long.

    Attributes:
      lengths: tokens of each; what is asked for follows the last.
      corrupt: with the other answer: the name that gives, or the object asked, is the other.
      unrelated: with three names that are in no answer, one each; of colours, the corrupted again.
      answers: possible ones, the right one first and the corrupted twin's second: two names, or three colours.
      right, wrong: where the right answer is in the prompt, and where the others are.
    """

    tokens: Int[np.ndarray, "prompts length"]
    lengths: Int[np.ndarray, " prompts"]
    corrupt: Int[np.ndarray, "prompts length"]
    unrelated: Int[np.ndarray, "prompts length"]
    answers: Int[np.ndarray, "prompts choices"]
    right: Bool[np.ndarray, "prompts length"]
    wrong: Bool[np.ndarray, "prompts length"]

    def part(self, which: slice) -> "Prompts":
        """Some of the prompts."""
        return Prompts(*(each[which] for each in self))


def names(encode: Encode, count: int, rng: np.random.Generator) -> Prompts:
    """Prompts that ask for the name of who is given to, as often the first of the two as the second.

    Raises:
      ValueError: fewer than five names are one token each.
    """
    known = _single(encode, NAMES.split(), 5)
    rows = []
    for row in range(count):
        one, other, *three = rng.permutation(known)[:5].tolist()
        story = STORIES[row % len(STORIES)]
        place, gift = rng.choice(PLACES), rng.choice(GIFTS)
        first, second = (one, other) if row // len(STORIES) % 2 else (other, one)

        def told(first: str, second: str, giver: str, story: str = story, place: str = place, gift: str = gift):
            return encode(story.format(first=first, second=second, giver=giver, place=place, gift=gift))

        tokens = told(first, second, other)
        # One who is given to, and one who gives and is there twice.
        answers = [encode(f" {name}")[0] for name in (one, other)]
        right, wrong = ([token == answer for token in tokens] for answer in answers)
        if (sum(right), sum(wrong)) != (1, 2):
            raise ValueError(f"encode must make each name of a text the same token; got {tokens} of {answers}")
        rows.append((tokens, told(first, second, one), told(*three), answers, right, wrong))
    return _gather(rows)


def colours(encode: Encode, count: int, rng: np.random.Generator) -> Prompts:
    """Prompts that ask for the colour of one of three objects, behind another such question with its answer.

    Raises:
      ValueError: fewer than three objects are one token each, or a colour is none.
    """
    known, tones = _single(encode, OBJECTS.split(), 3), _single(encode, COLOURS, len(COLOURS))
    _single(encode, tuple(tone.capitalize() for tone in COLOURS), len(COLOURS))
    rows = []
    for _ in range(count):

        def listed() -> tuple[list[str], list[str], str]:
            objects, shown = rng.permutation(known)[:3].tolist(), rng.permutation(tones)[:3].tolist()
            things = [
                f"{'an' if tone[0] in 'aeiou' else 'a'} {tone} {each}"
                for each, tone in zip(objects, shown, strict=True)
            ]
            where = f"On the {rng.choice(SURFACES)}, {rng.choice(SEEN)}"
            return objects, shown, f"Q: {where} {things[0]}, {things[1]}, and {things[2]}. What color is the"

        objects, shown, text = listed()
        asked = int(rng.integers(3))
        example = f"{text} {objects[asked]}?\nA: {shown[asked].capitalize()}\n"
        objects, shown, text = listed()
        order = rng.permutation(3).tolist()  # asked, asked in the twin, and the third

        def question(asked: int, example: str = example, text: str = text, objects: list[str] = objects) -> list[int]:
            return encode(f"{example}{text} {objects[asked]}?\nA:")

        tokens, before = question(order[0]), len(encode(example))
        told = [encode(f" {shown[each]}")[0] for each in order]
        right = [place >= before and token == told[0] for place, token in enumerate(tokens)]
        wrong = [place >= before and token in told[1:] for place, token in enumerate(tokens)]
        if (sum(right), sum(wrong)) != (1, 2):
            raise ValueError(f"encode must make each colour of a text the same token; got {tokens} of {told}")
        answers = [encode(f" {shown[each].capitalize()}")[0] for each in order]
        corrupt = question(order[1])
        rows.append((tokens, corrupt, corrupt, answers, right, wrong))
    return _gather(rows)


def _single(encode: Encode, words: Sequence[str], least: int) -> list[str]:
    """Those that are one token behind a space, at least so many."""
    known = [word for word in words if len(encode(f" {word}")) == 1]
    if len(known) < least:
        raise ValueError(f"encode must make at least {least} of {', '.join(words[:3])} ... one token; got {len(known)}")
    return known


def _gather(rows: list[tuple[list, ...]]) -> Prompts:
    """Rows of tokens, corrupt, unrelated, answers, right and wrong, padded behind."""
    lengths = np.array([len(row[0]) for row in rows])
    for row in rows:
        if len({len(row[column]) for column in (0, 1, 2)}) != 1:
            raise ValueError(
                f"encode must make twins as long as their prompts; got {[len(row[each]) for each in range(3)]}"
            )

    def padded(column: int, dtype: type) -> np.ndarray:
        found = np.zeros((len(rows), lengths.max()), dtype)
        for place, row in enumerate(rows):
            found[place, : lengths[place]] = row[column]
        return found

    twins = (padded(column, np.int32) for column in (0, 1, 2))
    tokens, corrupt, unrelated = twins
    answers = np.array([row[3] for row in rows], np.int32)
    return Prompts(tokens, lengths, corrupt, unrelated, answers, padded(4, bool), padded(5, bool))
