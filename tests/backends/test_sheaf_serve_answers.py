"""sheaf-serve's backends answer what is asked, or it is said: refused, or noted in the answer."""

from __future__ import annotations

import base64
import io
import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sheaf_dagster.backends.sheaf.deviations import Asked, deviations
from sheaf_dagster.backends.sheaf.pictures import as_shown
from sheaf_dagster.backends.sheaf.refusals import refuse, refuse_answer
from sheaf_dagster.backends.sheaf.watching import temporary_files_removed, watch
from sheaf_dagster.contracts import deviations_of
from tests.backends.sheaf_rows import asked_of, made, png

# -- refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chronos2", "timesfm", "moirai"])
@pytest.mark.parametrize(
    ("history", "says"),
    [
        ([1.0, math.inf, 2.0], r"infinite.* at step 1; a missing value is null"),
        ([1.0, 2.0, 1e39], r"beyond float32, at step 2"),
        ([math.nan, math.nan], "has no value to forecast from"),
        ([], "has no value to forecast from"),
    ],
)
def test_values_that_float32_does_not_hold_fail_their_row(name, history, says):
    request = asked_of("time_series").model_copy(update={"history": history})
    with pytest.raises(ValueError, match=rf"{request.request_id}: 'history' .*{says}"):
        refuse(name, made(name), request)


def test_a_value_counts_only_where_the_model_reads_it():
    request = asked_of("time_series", history=[[1.0, 2.0], [1.0, 1e39], [1.0, 2.0]])
    refuse("chronos2", made("chronos2"), request)
    with pytest.raises(ValueError, match="beyond float32, at step 1"):
        refuse("moirai", made("moirai"), request)


def test_a_history_too_large_to_be_scaled_fails_its_row():
    bolt = made("chronos2")
    bolt._is_bolt = True
    request = asked_of("time_series", history=[1e20, -1e20, 1e20])
    with pytest.raises(ValueError, match="too large, or too far apart"):
        refuse("chronos2", bolt, request)


@pytest.mark.parametrize("level", [0.05, 0.95, 0.30000000000000004, 0.15])
def test_a_quantile_level_that_bolt_lacks_is_not_answered_with_the_median(level):
    bolt = made("chronos2")
    bolt._is_bolt = True
    fields = {"output_mode": "quantiles", "quantile_levels": [0.1, level]}
    with pytest.raises(ValueError, match=r"no quantile level .*; it has 0\.1, 0\.2"):
        refuse("chronos2", bolt, asked_of("time_series", **fields))
    refuse("chronos2", made("chronos2"), asked_of("time_series", **fields))  # of T5's paths


@pytest.mark.parametrize(
    ("name", "kwargs", "model_type", "fields", "says"),
    [
        ("timesfm", {}, "time_series",
         {"output_mode": "quantiles", "quantile_levels": [0.95]}, "no quantile level 0.95"),
        ("tabpfn", {}, "tabular", {"query_X": [[3, 1e39]]}, "'query_X' is infinite.* in row 0"),
        ("tabpfn", {}, "tabular",
         {"context_X": [[1, 2], [1e300, 2]], "context_y": [0, 1]}, "'context_X' .* in row 1"),
        ("mace", {}, "materials", {"pbc": True}, "'pbc' needs 'cell'"),
        ("mace", {}, "materials", {"pbc": [False, False, True]}, "'pbc' needs 'cell'"),
        ("videomae", {}, "video", {"task": "classification"}, "loaded for 'embedding'"),
        ("videomae", {"task": "classification"}, "video", {}, "loaded for 'classification'"),
        ("sdxl", {}, "multimodal_generation", {"mask_b64": png()}, "mode='img2img'"),
        ("sdxl", {"mode": "inpaint"}, "multimodal_generation", {}, "mode='inpaint'"),
    ],
)  # fmt: skip
def test_a_row_that_would_be_answered_with_something_else_fails(
    name, kwargs, model_type, fields, says
):
    with pytest.raises(ValueError, match=says):
        refuse(name, made(name, **kwargs), asked_of(model_type, **fields))


def test_rows_that_are_in_order_are_let_through():
    refuse("mace", made("mace"), asked_of("materials"))
    refuse(
        "mace",
        made("mace"),
        asked_of("materials", pbc=True, cell=[[9, 0, 0], [0, 9, 0], [0, 0, 9]]),
    )
    refuse("tabpfn", made("tabpfn"), asked_of("tabular", context_X=[[math.nan, 2]], query_X=[]))
    refuse("depth-anything", made("depth-anything"), asked_of("depth"))


@pytest.mark.parametrize("mode", ["samples", "quantiles"])
def test_an_answer_without_what_was_asked_for_is_none(mode):
    request = asked_of("time_series", output_mode=mode)
    with pytest.raises(ValueError, match=f"the model gives no {mode}"):
        refuse_answer(request, SimpleNamespace(samples=None, quantiles=None))
    refuse_answer(request, SimpleNamespace(samples=[[1]], quantiles={"0.1": [1]}))
    refuse_answer(asked_of("depth"), SimpleNamespace())


# -- noted ------------------------------------------------------------------------------------


def noted(name: str, backend, model_type: str, answer=None, **fields):
    request = asked_of(model_type, **fields)
    return deviations(Asked(name, backend, request, fields.keys()), answer or SimpleNamespace())


LONG = [1.0] * 513
MODELS = {
    "bolt": SimpleNamespace(_pipeline=SimpleNamespace(model_context_length=512)),
    "timesfm": SimpleNamespace(_model=SimpleNamespace(context_len=512)),
    "moirai": SimpleNamespace(_context_length=512),
    "english": SimpleNamespace(_model=SimpleNamespace(is_multilingual=False)),
    "whisper": SimpleNamespace(_model=SimpleNamespace(is_multilingual=True)),
    "faster": SimpleNamespace(_model=SimpleNamespace(model=SimpleNamespace(is_multilingual=False))),
    "six bands": SimpleNamespace(_processor=SimpleNamespace(image_mean=[0.0] * 6)),
    "one band": SimpleNamespace(_processor=SimpleNamespace(image_mean=[0.0])),
    "no bands": SimpleNamespace(_processor=SimpleNamespace()),
}


@pytest.mark.parametrize(
    ("name", "backend", "model_type", "fields", "expected"),
    [
        ("chronos2", "bolt", "time_series", {}, []),
        ("chronos2", "bolt", "time_series", {"history": LONG}, ["truncated"]),
        ("chronos2", "bolt", "time_series", {"history": LONG[1:]}, []),
        ("chronos2", "bolt", "time_series", {"target_index": 1}, ["ignored_field"]),
        ("chronos2", "bolt", "time_series", {"history": [[1, 2]]}, ["ignored_field"]),
        ("timesfm", "timesfm", "time_series", {"history": LONG}, ["truncated"]),
        ("moirai", "moirai", "time_series", {"history": LONG}, ["truncated"]),
        ("moirai", "moirai", "time_series", {"history": [[1, 2]], "target_index": 1}, []),
        ("moirai", "moirai", "time_series", {"target_index": 1}, ["ignored_field"]),
        ("whisper", "whisper", "audio", {}, []),
        ("whisper", "whisper", "audio", {"beam_size": 5}, ["ignored_field"]),
        ("whisper", "whisper", "audio", {"vad_filter": True}, ["ignored_field"]),
        ("whisper", "whisper", "audio", {"language": "de"}, []),
        ("whisper", "english", "audio", {"language": "de"}, ["ignored_field"]),
        ("whisper", "english", "audio", {"language": "en"}, []),
        ("faster-whisper", "faster", "audio", {"beam_size": 2, "vad_filter": True}, []),
        ("faster-whisper", "faster", "audio", {"task": "translate"}, ["ignored_field"]),
        ("prithvi", "one band", "geospatial", {}, []),
        ("prithvi", "six bands", "geospatial", {}, ["ignored_field"]),
        ("prithvi", "no bands", "geospatial", {}, ["ignored_field"]),
        ("prithvi", "six bands", "geospatial", {"normalize": False}, []),
        ("prithvi", "one band", "geospatial", {"wavelengths": [0.6]}, ["ignored_field"]),
    ],
)
def test_rows_that_are_answered_otherwise_than_asked_are_noted(
    name, backend, model_type, fields, expected
):
    assert noted(name, MODELS[backend], model_type, **fields) == expected


@pytest.mark.parametrize(
    ("name", "kwargs", "model_type", "fields", "expected"),
    [
        ("esm3", {}, "molecular", {"pooling": "cls"}, ["ignored_field"]),
        ("esm3", {"pooling": "cls"}, "molecular", {"pooling": "cls"}, []),
        ("esm3", {"pooling": "cls"}, "molecular", {}, []),
        ("videomae", {"pooling": "mean"}, "video", {}, ["ignored_field"]),
        ("videomae", {"pooling": "mean"}, "video", {"pooling": "cls"}, []),
        ("videomae", {}, "video", {"pooling": "mean"}, []),
        ("esmfold2", {}, "structure", {"msa": [["MKT"]]}, ["ignored_field"]),
        ("vitpose", {}, "pose", {"bboxes": []}, ["ignored_field"]),
        ("vitpose", {}, "pose", {"threshold": 0.3}, ["ignored_field"]),
        ("vitpose", {}, "pose", {"bboxes": [[0, 0, 9, 9]]}, []),
    ],
)
def test_what_rows_and_arguments_say_of_one_setting(name, kwargs, model_type, fields, expected):
    assert noted(name, made(name, **kwargs), model_type, **fields) == expected


def test_a_picture_or_paths_of_another_number_are_noted():
    answer = SimpleNamespace(height=1024, width=1008)
    wide = {"prompt": "a", "width": 1016}
    assert noted("extra", None, "diffusion", answer, **wide) == ["clipped"]
    paths = {"output_mode": "samples", "num_samples": 3}
    hundred = SimpleNamespace(samples=[[1.0]] * 100)
    assert noted("extra", None, "time_series", hundred, **paths) == ["ignored_field"]


@pytest.mark.model
def test_texts_that_are_cut_are_noted_as_their_tokenizers_cut_them():
    from tests.backends.weights import tokenizer

    words = tokenizer()
    words.model_max_length = 6
    sequences = SimpleNamespace(_tokenizer=words)
    fits, cut = "a cat of dog", "a cat of red dog"
    assert len(words(fits)["input_ids"]) == 6

    assert noted("nucleotide_transformer", sequences, "genomic", sequences=[fits, fits]) == []
    assert noted("nucleotide_transformer", sequences, "genomic", sequences=[fits, cut]) == [
        "truncated"
    ]
    assert noted("molformer", sequences, "small_molecule", smiles=[cut]) == ["truncated"]
    bark = SimpleNamespace(_processor=SimpleNamespace(tokenizer=words))
    assert noted("bark", bark, "tts", text="a " * 256) == []
    assert noted("bark", bark, "tts", text="a " * 257, speed=2) == ["ignored_field", "truncated"]
    schnell = SimpleNamespace(
        tokenizer_2=words,
        transformer=SimpleNamespace(config=SimpleNamespace(guidance_embeds=False)),
    )
    flux = SimpleNamespace(_pipeline=schnell)
    assert noted("flux", flux, "diffusion", prompt="a " * 510) == []
    assert noted("flux", flux, "diffusion", prompt="a " * 511) == ["truncated"]
    assert noted("flux", flux, "diffusion", prompt="a", negative_prompt="b") == ["ignored_field"]
    assert noted("flux", flux, "diffusion", prompt="a", guidance_scale=3.5) == ["ignored_field"]
    sdxl = SimpleNamespace(_pipeline=SimpleNamespace(tokenizer=words))
    assert noted("sdxl", sdxl, "multimodal_generation", negative_prompt=cut) == ["truncated"]

    def clip(texts, context_length=6):
        import torch

        cut_off = {"truncation": True, "max_length": context_length, "padding": "max_length"}
        return torch.tensor(words(texts, **cut_off)["input_ids"])

    open_clip = SimpleNamespace(_tokenizer=clip)
    assert noted("open-clip", open_clip, "embedding", texts=[fits, "a"]) == []
    assert noted("open-clip", open_clip, "embedding", texts=["a", cut]) == ["truncated"]


def test_weather_without_the_sun_is_noted_row_by_row():
    backend = made("graphcast", checkpoint_path="a.npz")
    forcings = iter([{"sun": 1}, {}, {"sun": 1}])
    backend._build_forcings = lambda *_: SimpleNamespace(data_vars=next(forcings))

    def run(request):
        backend._build_forcings(None, None)
        return SimpleNamespace(metadata={})

    backend._run = run
    watch("graphcast", backend)

    answers = backend.batch_predict([asked_of("weather")] * 3)

    assert [deviations_of(a.__dict__) for a in answers] == [(), ("fell_back",), ()]


# -- pictures and sounds ----------------------------------------------------------------------


def encoded(image: Image.Image, form: str = "PNG", **options) -> str:
    out = io.BytesIO()
    image.save(out, form, **options)
    return base64.b64encode(out.getvalue()).decode()


def opened(picture: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(picture)))


def test_pictures_are_handed_over_upright_and_not_black():
    on_its_side = Image.new("RGB", (20, 10), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(on_its_side, "JPEG", exif=exif)
    deep = encoded(Image.fromarray(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)), "TIFF")
    plain = png()

    frames = as_shown(asked_of("video", frames_b64=[plain, turned, deep])).frames_b64

    assert frames[0] == plain, "to the byte as given"
    assert opened(frames[1]).size == (10, 20)
    assert np.asarray(opened(frames[2]))[..., 0].tolist() == [
        [0, 23, 46, 70],
        [93, 116, 139, 162],
        [185, 209, 232, 255],
    ]
    assert as_shown(asked_of("depth", image_b64=plain)).image_b64 == plain


def test_a_deep_picture_of_no_known_range_fails_its_row():
    far = encoded(Image.fromarray(np.array([[-5.0, 1e6]], dtype=np.float32)), "TIFF")
    with pytest.raises(ValueError, match=r"'image_b64' has values from -5 to 1e\+06"):
        as_shown(asked_of("depth", image_b64=far))


@pytest.mark.parametrize("name", ["whisper", "faster-whisper"])
def test_sounds_that_are_unpacked_leave_no_file_behind(name):
    backend, paths = made(name), []

    def transcribe(path, **_):
        paths.append(path)
        assert os.path.exists(path)
        raise RuntimeError("cut off")

    backend._model = SimpleNamespace(transcribe=transcribe)
    with pytest.raises(RuntimeError), temporary_files_removed(backend):
        backend.predict(asked_of("audio"))

    assert len(paths) == 1
    assert not os.path.exists(paths[0])
