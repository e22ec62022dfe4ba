"""The docs' pictures are sharp, opaque, small, and of the code that is here."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.browser.pictures import DENSITY, FOLDER, HEIGHT, NAMES, WIDTH, code_of, pictured_code


def test_each_picture_of_the_docs_is_one_that_is_taken():
    assert {path.stem for path in FOLDER.glob("*.png")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_sharp_and_opaque_and_of_todays_code(name):
    path = FOLDER / f"{name}.png"
    image = Image.open(path)

    assert image.size == (WIDTH * DENSITY, HEIGHT * DENSITY)
    assert path.stat().st_size < 400_000
    # What lies in front of all else, a page or a dialog, is white. Half faded in, it would be grey.
    white = sum(
        count
        for count, colour in image.convert("RGB").getcolors(WIDTH * HEIGHT * DENSITY**2) or ()
        if colour == (255, 255, 255)
    )
    assert white > 0.08 * image.width * image.height
    assert code_of(image) == pictured_code(), "run 'make pictures', and look at them"
