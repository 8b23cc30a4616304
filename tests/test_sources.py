"""The options that name sequences: what each reads, and which belong together."""

from __future__ import annotations

import argparse

import pytest

from inference.sources import add_sources, read_sequences, source_flag, source_record
from utils.errors import UserError


@pytest.fixture
def root(tmp_path):
    """The same two sequences as a list, as DAVIS and as a pair of folders."""
    for name in ("ant", "bee"):
        for folder, suffix, frames in (("JPEGImages", "jpg", range(3)), ("Annotations", "png", range(1))):
            (tmp_path / folder / "480p" / name).mkdir(parents=True)
            for t in frames:
                (tmp_path / folder / "480p" / name / f"{t}.{suffix}").touch()
    (tmp_path / "ImageSets/2016").mkdir(parents=True)
    (tmp_path / "ImageSets/2016/val.txt").write_text("ant\nbee\n")
    (tmp_path / "list.txt").write_text("".join(f"1 JPEGImages/480p/{name}/{t}.jpg Annotations/480p/{name}/{t}.png\n"
                                               for name in ("ant", "bee") for t in range(3)))
    return tmp_path


def parsed(root, *words):
    parser = argparse.ArgumentParser()
    add_sources(parser)
    return parser.parse_args([word.format(root=root) for word in words])


@pytest.mark.parametrize("words", [
    ("--infer-list", "list"), ("--davis_path", "{root}", "--set_name", "2016-val"),
    ("--frames", "{root}/JPEGImages/480p", "--masks", "{root}/Annotations/480p")])
def test_every_source_gives_the_same_sequences(root, words):
    listed = read_sequences(parsed(root, "--infer-list", "list"), root)
    args = parsed(root, *words)
    assert source_flag(args) == words[0] and read_sequences(args, root) == listed and len(listed) == 2
    some = parsed(root, *words, "--sequences", "bee")
    assert read_sequences(some, root) == listed[1:] and source_record(some)["sequences"] == ["bee"]
    with pytest.raises(UserError, match="has no cow; it has ant, bee"):
        read_sequences(parsed(root, *words, "--sequences", "cow"), root)


@pytest.mark.parametrize("words, named", [
    (("--video", "a.mp4", "--sequences", "a"), "--sequences takes"), (("--frames", "x"), "--frames needs --masks"),
    (("--infer-list", "list", "--set_name", "val"), "--set_name belongs to --davis_path"),
    (("--davis_path", "x", "--masks", "y"), "--masks belongs to --frames"), (("--video", ""), "--video .* empty")])
def test_options_of_another_source_are_refused(root, words, named):
    with pytest.raises(UserError, match=named):
        source_flag(parsed(root, *words))
