"""Text generated with and without edits, against the model run over the whole text for every token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn.interpret import Scale, Set, Where, capture, edit, mask_heads
from jattn.models.generate import continue_prompt, generate, read_prompt
from jattn.models.language_model import LanguageModel, LanguageModelConfig

LAYERS, HEADS, VOCABULARY, STEPS = 2, 4, 40, 5
CONFIG = LanguageModelConfig(VOCABULARY, 32, LAYERS, HEADS, 48, kv_heads=2, windows=(4, None))
LENGTHS = (7, 1, 4)
ROWS = [np.random.default_rng(row).integers(1, VOCABULARY, length) for row, length in enumerate(LENGTHS)]
PROMPT = jnp.asarray([np.pad(row, (0, max(LENGTHS) - len(row))) for row in ROWS])


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(CONFIG, rngs=nnx.Rngs(3))


@pytest.fixture(scope="module")
def whole(model):
    """Logits of a padded text, with edits."""
    return jax.jit(lambda tokens, edits: capture(model, tokens, edits=edits).output)


@pytest.fixture(scope="module")
def likeliest(model):
    return generate(model, PROMPT, STEPS, lengths=jnp.asarray(LENGTHS))


def written(whole, edits_of, row: int, steps: int = STEPS) -> list[int]:
    """What follows a prompt, the likeliest token each time, all of the text run over."""
    text = np.zeros((1, 16), np.int32)
    length = LENGTHS[row]
    text[0, :length] = ROWS[row]
    for place in range(length, length + steps):
        text[0, place] = int(whole(jnp.asarray(text), edits_of(length))[0, place - 1].argmax())
    return text[0, length : length + steps].tolist()


def test_generated_text_is_that_of_the_whole_model(likeliest, whole) -> None:
    for row in range(3):
        assert likeliest.tokens[row].tolist() == written(whole, lambda _: [], row)
    assert likeliest.lengths.tolist() == [STEPS] * 3


def test_texts_stop_each_by_itself(model, likeliest) -> None:
    free = np.asarray(likeliest.tokens)
    stop = int(free[0, 2])
    made = generate(model, PROMPT, STEPS, lengths=jnp.asarray(LENGTHS), stop=(stop,), padding=-1)
    for row in range(3):
        count = free[row].tolist().index(stop) + 1 if stop in free[row] else STEPS
        assert made.lengths[row] == count
        assert made.tokens[row].tolist() == free[row, :count].tolist() + [-1] * (STEPS - count)


def test_a_cold_draw_is_the_likeliest_and_draws_repeat_by_key(model, likeliest) -> None:
    def draw(temperature: float, seed: int) -> np.ndarray:
        lengths = jnp.asarray(LENGTHS)
        options = {"temperature": temperature, "key": jax.random.key(seed)}
        return np.asarray(generate(model, PROMPT, STEPS, lengths=lengths, **options).tokens)

    for cold in (0.0, 1e-4):
        assert (draw(cold, 0) == likeliest.tokens).all()
    assert (draw(3.0, 1) == draw(3.0, 1)).all()
    assert (draw(3.0, 1) != draw(3.0, 2)).any()


@pytest.mark.parametrize("mode", ["zero", "uniform"])
def test_heads_masked_in_decoding_alone_leave_the_prompt_as_it_is(model, likeliest, whole, mode) -> None:
    mask = jnp.zeros((LAYERS, HEADS), bool).at[0, 1].set(True).at[1, 2].set(True)
    site = {"zero": "head_output", "uniform": "query"}[mode]

    def after(length: int) -> list:
        """The same on the rows from the prompt's last on."""
        rows = jnp.arange(16) >= length - 1
        return [
            edit(f"layers.{layer}.attention.{site}", Set(0.0), Where(positions=rows, heads=mask[layer]))
            for layer in range(LAYERS)
        ]

    @jax.jit
    def masked(mask):
        read = read_prompt(model, PROMPT, STEPS, jnp.asarray(LENGTHS))
        edits = mask_heads(mask, mode, during="decode")
        return capture(continue_prompt, model, read, STEPS, edits=edits).output.tokens

    for row, tokens in enumerate(masked(mask)):
        assert tokens.tolist() == written(whole, after, row)
    assert masked._cache_size() == 1
    nothing = masked(jnp.zeros_like(mask))
    assert (nothing == likeliest.tokens).all()
    assert (nothing != masked(jnp.ones_like(mask))).any()
    assert masked._cache_size() == 1


def test_generate_sees_handlers_though_it_was_compiled_before(model, likeliest) -> None:
    options = {"lengths": jnp.asarray(LENGTHS)}
    turned = jax.jit(lambda: capture(generate, model, PROMPT, STEPS, edits=[edit("logits", Scale(-1.0))], **options))
    assert (turned().output.tokens != likeliest.tokens).any()
    assert (generate(model, PROMPT, STEPS, **options).tokens == likeliest.tokens).all()


def test_what_is_within_the_loop_cannot_be_kept(model) -> None:
    def kept():
        read = read_prompt(model, PROMPT, STEPS)
        return capture(continue_prompt, model, read, STEPS, sites=["layers.*.residual"]).sites

    with pytest.raises(ValueError, match=r"layers\.0\.residual is within a loop"):
        jax.eval_shape(kept)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"steps": 0}, "steps and the prompt's length must be at least 1"),
        ({"temperature": 1.0}, "key must be given"),
    ],
)
def test_bad_arguments_are_named(model, options, complaint) -> None:
    with pytest.raises(ValueError, match=complaint):
        generate(model, PROMPT, **({"steps": STEPS} | options))
