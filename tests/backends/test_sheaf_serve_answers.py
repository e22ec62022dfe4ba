"""sheaf-serve's backends answer what is asked, or it is said: refused, or noted in the answer."""

from __future__ import annotations

import base64
import io
import math
import os
import random
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import sheaf_dagster as sd
from sheaf_dagster.backends import resolve_backend
from sheaf_dagster.backends.arguments import check_arguments
from sheaf_dagster.backends.sheaf.deviations import Asked, deviations
from sheaf_dagster.backends.sheaf.drawing import RowDraws, seeded
from sheaf_dagster.backends.sheaf.pictures import as_shown
from sheaf_dagster.backends.sheaf.refusals import refuse, refuse_answer
from sheaf_dagster.backends.sheaf.watching import temporary_files_removed, watch
from sheaf_dagster.contracts import deviations_of
from tests.backends.sheaf_rows import THEIRS, line, png, theirs

NAMESPACE = SimpleNamespace


def asked_of(model_type: str, **fields):
    """A request of sheaf-serve's own class."""
    return THEIRS.validate_json(line(model_type, **fields))


def made(name: str, **kwargs):
    """A backend of its own class, without a model."""
    return theirs()[name](**kwargs)


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
        refuse_answer(request, NAMESPACE(samples=None, quantiles=None))
    refuse_answer(request, NAMESPACE(samples=[[1]], quantiles={"0.1": [1]}))
    refuse_answer(asked_of("depth"), NAMESPACE())


# -- noted ------------------------------------------------------------------------------------


def noted(name: str, backend, model_type: str, answer=None, **fields):
    request = asked_of(model_type, **fields)
    return deviations(Asked(name, backend, request, fields.keys()), answer or NAMESPACE())


LONG = [1.0] * 513
MODELS = {
    "bolt": NAMESPACE(_pipeline=NAMESPACE(model_context_length=512)),
    "timesfm": NAMESPACE(_model=NAMESPACE(context_len=512)),
    "moirai": NAMESPACE(_context_length=512),
    "english": NAMESPACE(_model=NAMESPACE(is_multilingual=False)),
    "whisper": NAMESPACE(_model=NAMESPACE(is_multilingual=True)),
    "faster": NAMESPACE(_model=NAMESPACE(model=NAMESPACE(is_multilingual=False))),
    "six bands": NAMESPACE(_processor=NAMESPACE(image_mean=[0.0] * 6)),
    "one band": NAMESPACE(_processor=NAMESPACE(image_mean=[0.0])),
    "no bands": NAMESPACE(_processor=NAMESPACE()),
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
    answer = NAMESPACE(height=1024, width=1008)
    wide = {"prompt": "a", "width": 1016}
    assert noted("extra", None, "diffusion", answer, **wide) == ["clipped"]
    paths = {"output_mode": "samples", "num_samples": 3}
    hundred = NAMESPACE(samples=[[1.0]] * 100)
    assert noted("extra", None, "time_series", hundred, **paths) == ["ignored_field"]


@pytest.mark.model
def test_texts_that_are_cut_are_noted_as_their_tokenizers_cut_them():
    from tests.backends.weights import tokenizer

    words = tokenizer()
    words.model_max_length = 6
    sequences = NAMESPACE(_tokenizer=words)
    fits, cut = "a cat of dog", "a cat of red dog"
    assert len(words(fits)["input_ids"]) == 6

    assert noted("nucleotide_transformer", sequences, "genomic", sequences=[fits, fits]) == []
    assert noted("nucleotide_transformer", sequences, "genomic", sequences=[fits, cut]) == [
        "truncated"
    ]
    assert noted("molformer", sequences, "small_molecule", smiles=[cut]) == ["truncated"]
    bark = NAMESPACE(_processor=NAMESPACE(tokenizer=words))
    assert noted("bark", bark, "tts", text="a " * 256) == []
    assert noted("bark", bark, "tts", text="a " * 257, speed=2) == ["ignored_field", "truncated"]
    schnell = NAMESPACE(
        tokenizer_2=words, transformer=NAMESPACE(config=NAMESPACE(guidance_embeds=False))
    )
    flux = NAMESPACE(_pipeline=schnell)
    assert noted("flux", flux, "diffusion", prompt="a " * 510) == []
    assert noted("flux", flux, "diffusion", prompt="a " * 511) == ["truncated"]
    assert noted("flux", flux, "diffusion", prompt="a", negative_prompt="b") == ["ignored_field"]
    assert noted("flux", flux, "diffusion", prompt="a", guidance_scale=3.5) == ["ignored_field"]
    sdxl = NAMESPACE(_pipeline=NAMESPACE(tokenizer=words))
    assert noted("sdxl", sdxl, "multimodal_generation", negative_prompt=cut) == ["truncated"]

    def clip(texts, context_length=6):
        import torch

        cut_off = {"truncation": True, "max_length": context_length, "padding": "max_length"}
        return torch.tensor(words(texts, **cut_off)["input_ids"])

    open_clip = NAMESPACE(_tokenizer=clip)
    assert noted("open-clip", open_clip, "embedding", texts=[fits, "a"]) == []
    assert noted("open-clip", open_clip, "embedding", texts=["a", cut]) == ["truncated"]


def test_weather_without_the_sun_is_noted_row_by_row():
    backend = made("graphcast", checkpoint_path="a.npz")
    forcings = iter([{"sun": 1}, {}, {"sun": 1}])
    backend._build_forcings = lambda *_: NAMESPACE(data_vars=next(forcings))

    def run(request):
        backend._build_forcings(None, None)
        return NAMESPACE(metadata={})

    backend._run = run
    watch("graphcast", backend)

    answers = backend.batch_predict([asked_of("weather")] * 3)

    assert [deviations_of(a.__dict__) for a in answers] == [(), ("fell_back",), ()]


# -- drawn ------------------------------------------------------------------------------------


def ids(n: int) -> list:
    return [asked_of("depth") for _ in range(n)]


def test_rows_that_are_drawn_do_not_depend_on_their_batch_mates():
    def draw(rows):
        return [(random.random(), float(np.random.rand())) for _ in rows]  # noqa: NPY002

    rows, state = ids(4), random.getstate()

    together = RowDraws(draw).answer(rows, "kind")
    alone = [RowDraws(draw).answer([row], "kind")[0] for row in rows]
    draws = RowDraws(draw)
    again = draws.answer(rows[:2], "kind") + draws.answer(rows[2:], "kind")

    assert together == alone == again
    assert len(set(together)) == 4
    assert random.getstate() == state, "the caller's own generator is left as it was"


def test_rows_that_are_not_drawn_stay_together():
    calls: list[int] = []

    def answer(rows):
        calls.append(len(rows))
        return [row.request_id for row in rows]

    draws, rows = RowDraws(answer), ids(5)

    assert draws.answer(rows, "kind") == [row.request_id for row in rows]
    assert draws.answer(rows, "kind") == [row.request_id for row in rows]
    assert calls == [1, 5, 5], "one row is asked alone, once"


def test_a_draw_of_another_thread_meanwhile_is_not_taken_for_the_backends():
    calls: list[int] = []

    def answer(rows):
        calls.append(len(rows))
        if len(calls) == 1:
            random.random()
        return list(rows)

    draws = RowDraws(answer)
    draws.answer(ids(3), "kind")

    assert calls == [1, 1, 3]


def test_some_rows_of_a_kind_may_draw():
    def answer(rows):
        return [random.random() if row.normalize else 0.0 for row in rows]

    rows = [asked_of("depth", normalize=n) for n in (False, True, True)]

    together = RowDraws(answer).answer(rows, "kind")

    assert together == [RowDraws(answer).answer([row], "kind")[0] for row in rows]
    assert together[1] != together[2]


def test_generators_of_torch_are_seeded_and_put_back():
    torch = pytest.importorskip("torch")
    before = torch.get_rng_state()

    with seeded(b"a"):
        first = torch.rand(3)
    with seeded(b"a"):
        again = torch.rand(3)

    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_worker_draws_the_same_weights():
    pytest.importorskip("torch")
    request = asked_of("point_cloud", task="classify")
    answers = []
    for _ in range(2):
        backend = resolve_backend("sheaf:pointnet")()
        backend.load()
        answers.append(backend.predict(request).scores)

    assert answers[0] == answers[1]


# -- arguments and weights --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("chronos2", {"num_samples": "20"}, "num_samples is '20'"),
        ("dinov2", {"pooling": "max"}, "pooling is 'max'"),
        ("videomae", {"task": "embed"}, "task is 'embed'"),
        ("timesfm", {"backend": "cuda"}, "backend is 'cuda'"),
        ("pointnet", {"label_names": "chair"}, "label_names is 'chair'"),
        ("flux", {"lora": ["ink"]}, r"lora is \['ink'\]"),
    ],
)
def test_an_argument_of_another_type_is_refused_by_name(name, given, says):
    with pytest.raises(sd.SpecError, match=rf"model 'm': backend_kwargs\.{says}"):
        check_arguments(resolve_backend(f"sheaf:{name}"), "m", given)


@pytest.mark.parametrize("name", sorted(theirs()))
def test_the_types_of_every_backend_can_be_checked(name):
    check_arguments(resolve_backend(f"sheaf:{name}"), "m", {"device": "cpu"})


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("chronos2", {"torch_dtype": "fp16"}, "torch_dtype must be one of bfloat16, .*'fp16'"),
        ("flux", {"torch_dtype": "half"}, "torch_dtype must be one of"),
        ("sdxl", {"mode": "text2img"}, "mode must be one of"),
        ("raft", {"model_name": "raft"}, "model_name must be one of"),
        ("bark", {"model": "a"}, "unexpected keyword argument 'model'; its arguments are model_name"),
        ("graphcast", {}, "checkpoint_path"),
        ("flux", {"lora": {"adapters": {"ink": {}}}}, r"backend_kwargs\.lora\.adapters\.ink\.source: Field required"),
        ("flux", {"lora": {"default": "ink"}}, "not in adapters"),
        ("bark", {"lora": {"adapters": {}}}, "takes no LoRA adapters"),
        ("esmc", {"model_opt": {"mode": "fastest"}}, r"backend_kwargs\.model_opt"),
        ("esmc", {"model_opt": {"mode": "big"}}, r"requests model_opt mode 'big'"),
        ("bark", {"model_opt": {"mode": "off"}}, "no inference optimization kit"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_work_are_refused_before_anything_is_loaded(name, given, says):
    with pytest.raises(sd.SpecError, match=says):
        resolve_backend(f"sheaf:{name}")(**given)


def test_another_adapter_is_another_model(tmp_path):
    ink, base = tmp_path / "ink.safetensors", tmp_path / "flux"
    ink.write_bytes(b"ink")
    base.mkdir()
    (base / "weights").write_bytes(b"flux")
    flux = resolve_backend("sheaf:flux")
    kwargs = {
        "model_id": str(base),
        "lora": {"adapters": {"ink": {"source": str(ink)}}},
    }

    first = flux.identify(**kwargs)
    ink.write_bytes(b"other ink")

    assert first.startswith("model_id=sha256:")
    assert "; lora ink=sha256:" in first
    assert first != flux.identify(**kwargs)


def test_a_folder_that_is_called_like_a_device_is_no_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cpu").mkdir()
    (tmp_path / "net.pt").write_bytes(b"1")

    found = resolve_backend("sheaf:pointnet").identify(checkpoint_path="net.pt", device="cpu")

    assert found.startswith("checkpoint_path=sha256:")
    assert "device" not in found


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

    backend._model = NAMESPACE(transcribe=transcribe)
    with pytest.raises(RuntimeError), temporary_files_removed(backend):
        backend.predict(asked_of("audio"))

    assert len(paths) == 1
    assert not os.path.exists(paths[0])
