"""clipcovid.data.sources.matching: which file a path can mean."""

import random

import pytest

from clipcovid.data.sources.matching import match_paths, nearest_path


@pytest.mark.parametrize(
    ("path", "files", "fitting"),
    [
        ("a/1.png", ["a/1.png", "1.png", "b/a/1.png"], ["a/1.png"]),
        ("set/a/1.png", ["a/1.png", "1.png", "b/1.png"], ["a/1.png"]),  # repeats the root's name
        ("C:/data/set/a/1.png", ["a/1.png", "b/1.png"], ["a/1.png"]),
        ("1.png", ["a/1.png", "b/2.png"], ["a/1.png"]),
        ("1.png", ["a/1.png", "b/1.png"], ["a/1.png", "b/1.png"]),
        ("a/1.png", ["x/a/1.png", "1.png"], ["x/a/1.png"]),  # more of the path agrees
        ("A/1.PNG", ["a/1.png", "b/1.png"], ["a/1.png"]),
        ("A.png", ["a.png", "A.PNG"], ["a.png", "A.PNG"]),
        ("a/1", ["a/1.png", "b/1.png"], ["a/1.png"]),
        ("1.dcm", ["1.png"], ["1.png"]),
        ("1", ["1.dcm.png"], ["1.dcm.png"]),
        ("1", ["1.png", "1.jpg"], ["1.png", "1.jpg"]),
        ("1.2.840.7", ["1.2.840.7.dcm", "1.2.840.dcm"], ["1.2.840.7.dcm"]),
        ("u\u0308.png", ["ü.png"], ["ü.png"]),
        ("train/1.png", ["test/1.png"], []),  # another folder is another image
        ("1.png", ["11.png", "a1.png"], []),
        ("1", ["1.txt"], []),
    ],
)
def test_a_path_means_the_files_that_fit(path, files, fitting):
    assert match_paths([path], files)[path] == fitting


def test_a_file_is_never_the_image_of_two_paths():
    assert match_paths(["x/1.png", "y/1.png"], ["1.png"]) == {"x/1.png": [], "y/1.png": []}
    assert match_paths(["1.png", "set/1.png"], ["1.png"]) == {"1.png": ["1.png"], "set/1.png": []}


def test_matching_agrees_with_comparing_each_path_with_each_file():
    draw = random.Random(0)
    for _ in range(200):
        files = sorted({"/".join(draw.choices("ab", k=draw.randint(1, 3))) for _ in range(4)})
        path = "/".join(draw.choices("ab", k=draw.randint(1, 4)))
        longer = [file for file in files if file.endswith(f"/{path}")]
        shorter = sorted((file for file in files if path.endswith(f"/{file}")), key=len)[-1:]
        assert match_paths([path], files)[path] == ([path] if path in files else longer or shorter)


def test_the_nearest_file_has_the_name_and_most_of_the_folders():
    files = ["a/x/1.png", "b/y/1.png", "b/y/2.png"]
    assert nearest_path("c/y/1.jpg", files) == "b/y/1.png"
    assert nearest_path("c/22.png", files) == "b/y/2.png"
    assert nearest_path("c/22.png", []) == ""
