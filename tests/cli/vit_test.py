"""MoH-ViT as a user drives it: training on a folder with broken pictures, averaged weights, fp16, resume to the bit,
evaluation, classification of odd pictures, head load, and files that mean harm: one clear line, nothing executed.

vit_test.py MOH
"""
import io
import json
import os
import pathlib
import pickle
import shutil
import struct
import sys
import tempfile
import zipfile

import numpy
import torch

try:
    from PIL import Image
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

from tool import json_lines, refused, run  # noqa: E402

CLASSES = ("blue", "red")
SMALL = ("--preset", "moh-vit-cifar", "--model.image_size", 16, "--model.embed_dims", "[8,8,16,16]", "--model.num_heads",
         "[2,2,4,4]", "--model.depths", "[1,1,1,1]", "--model.crop", 1.0, "--moh.shared_heads", "[1,2,1,2]", "--moh.top_k",
         "[1,0,2,1]", "--batch", 4, "--warmup", 1, "--crop", "padded", "--repeats", 1, "--log-every", 1)


def picture(label, random, size=(16, 16)):
    pixels = random.integers(0, 60, (*size, 3), dtype=numpy.uint8)
    pixels[..., 2 if label == 0 else 0] += 180
    return pixels


def make_pictures(folder, classes=CLASSES, count=8):
    random = numpy.random.default_rng(len(classes))
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(picture(label, random)).save(folder / name / f"{i}.png")


def break_pictures(folder):
    """One picture of each class stays whole or more; what is broken, by name."""
    whole = io.BytesIO()
    Image.fromarray(picture(0, numpy.random.default_rng(9), (64, 64))).save(whole, "JPEG")
    broken = {"blue/empty.jpg": b"", "blue/half.jpg": whole.getvalue()[:len(whole.getvalue()) // 2],
              "red/text.png": b"not a picture", "red/half.png": (folder / "red" / "0.png").read_bytes()[:60]}
    for name, content in broken.items():
        (folder / name).write_bytes(content)
    return broken


def test_training_skips_broken_pictures(temporary):
    data = temporary / "data"
    make_pictures(data)
    broken = break_pictures(data)
    (data / "red" / "notes.txt").write_text("not read")
    out = temporary / "model"
    done = run("train", *SMALL, "--data", data, "--valid", data, "--out", out, "--steps", 12, "--validate-every", 6, "--json",
               "--ema", 0.5)
    log = [json.loads(line) for line in done.stdout.splitlines()]
    assert log[-1]["step"] == 12 and log[-1]["images"] == 48 and log[-1]["skipped"] == len(broken), log[-1]
    for key in ("loss", "load_balance_loss", "lr", "grad_norm", "images_per_second", "loader_share", "valid_top1",
                "valid_top5"):
        assert key in log[-1], key
    assert 0 <= log[-1]["loader_share"] <= 1 and abs(log[-1]["active_heads"] - 10 / 12) < 1e-6, log[-1]
    assert "4 pictures could not be read and were skipped; the first: [image] " in done.stderr, done.stderr
    for name in ("config.json", "model.safetensors", "ema.safetensors", "log.jsonl", "run.json"):
        assert (out / name).exists(), name

    line = json_lines("eval", out, "--data", data)[-1]
    assert line["images"] == 16 and line["skipped"] == 4 and 0 <= line["top1"] <= line["top5"] == 1, line
    told = run("eval", out, "--data", data).stdout
    assert "4 pictures could not be read and were left out; the first: [image] " in told, told
    by_weights = {weights: json_lines("eval", out, "--data", data, "--weights", weights)[-1]["loss"]
                  for weights in ("auto", "ema", "model")}
    assert by_weights["auto"] == by_weights["ema"] != by_weights["model"], by_weights
    refused("eval", out, "--data", data, "--weights", "mean", words=["cannot be `mean`", "auto, ema, model"], status=2)
    assert json_lines("eval", out, "--data", data, "--image-size", 24)[-1]["images"] == 16  # position tables of another map
    refused("eval", out, "--data", data, "--image-size", -3, words=["image_size", "-3"])

    alone = temporary / "alone"  # nothing that can be read
    for name in ("blue", "red"):
        (alone / name).mkdir(parents=True)
        (alone / name / "0.png").write_bytes(b"nothing")
    refused("eval", out, "--data", alone, words=["none of the 2 pictures", "alone"])
    for _ in range(5):  # whatever the loader's threads are doing when it ends
        refused("train", *SMALL, "--data", alone, "--out", temporary / "x", "--steps", 1, words=["alone"])
    return out


def test_classes_that_do_not_fit(temporary, model):
    data, three, empty, other = (temporary / name for name in ("data", "three", "empty", "other"))
    make_pictures(three, ("blue", "green", "red"), 2)
    make_pictures(empty, CLASSES, 2)
    (empty / "yellow").mkdir()
    (empty / "yellow" / "notes.txt").write_text("")
    make_pictures(other, ("blue", "rot"), 2)
    for command in (("eval", model, "--data"), ("inspect", model, "--data")):
        refused(*command, three, words=["three has 3 class folders", "2 classes"])
        refused(*command, empty, words=["class folder `yellow` has no *.jpg, *.jpeg or *.png"])
        refused(*command, other, words=["class 1 is `rot`, but `red` in the model"])
        refused(*command, temporary / "nowhere", words=["nowhere is not a folder"])
    train = ("train", *SMALL, "--steps", 1, "--out", temporary / "x")
    refused(*train, "--data", empty, words=["class folder `yellow`"])
    refused(*train, "--data", data, "--valid", three, words=["three has 3 class folders"])
    refused(*train, "--data", data, "--valid", other, words=["class 1 is `rot`"])
    refused(*train, "--data", data / "red", words=["has no subfolders"])
    refused(*train, words=["--data is missing"])
    assert not (temporary / "x" / "checkpoints").exists()


def test_fp16_and_resume(temporary):
    data = temporary / "data"
    for dtype in ("fp16", "bf16"):
        whole, again = temporary / f"whole-{dtype}", temporary / f"again-{dtype}"
        common = ("--data", data, "--dtype", dtype, "--ema", 0.9, "--moh.beta", 0.01)
        log = json_lines("train", *SMALL, *common, "--steps", 6, "--out", whole)
        assert all(numpy.isfinite(line["loss"]) for line in log)
        assert (log[-1].get("loss_scale", 0) >= 1) == (dtype == "fp16"), log[-1]
        run("train", *SMALL, *common, "--steps", 6, "--checkpoint-every", 3, "--out", again)
        shutil.rmtree(again / "checkpoints" / "step-6")  # as if it had been killed after the third step
        (again / "model.safetensors").unlink()
        run("train", "--resume", "--out", again)
        for name in ("model.safetensors", "ema.safetensors"):
            assert (whole / name).read_bytes() == (again / name).read_bytes(), (dtype, name)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_odd_pictures(temporary, model):
    random = numpy.random.default_rng(3)
    rgb = Image.fromarray(picture(1, random))
    wide = random.integers(0, 65536, (16, 16)).astype(numpy.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned: read as stored, as torchvision's folders do
    odd = {"rgb.png": saved(rgb, "PNG"), "grey.png": saved(rgb.convert("L"), "PNG"), "grey.jpg": saved(rgb.convert("L"), "JPEG"),
           "palette.png": saved(rgb.quantize(16), "PNG"), "alpha.png": saved(rgb.convert("RGBA"), "PNG"),
           "grey-alpha.png": saved(rgb.convert("LA"), "PNG"), "one-bit.png": saved(rgb.convert("1"), "PNG"),
           "cmyk.jpg": saved(rgb.convert("CMYK"), "JPEG"), "turned.jpg": saved(rgb, "JPEG", exif=exif),
           "progressive.jpg": saved(rgb, "JPEG", progressive=True), "interlaced.PNG": saved(rgb, "PNG"),
           "a png.jpg": saved(rgb, "PNG"), "a jpeg.png": saved(rgb, "JPEG"),
           "16 bit.png": saved(Image.fromarray(wide), "PNG"), "1x1.png": saved(rgb.resize((1, 1)), "PNG"),
           "1x300.png": saved(rgb.resize((1, 300)), "PNG"), "no ending": saved(rgb, "PNG")}
    folder = temporary / "odd"
    folder.mkdir()
    for name, content in odd.items():
        (folder / name).write_bytes(content)
    lines = json_lines("classify", model, *(folder / name for name in odd))
    assert [pathlib.Path(line["file"]).name for line in lines] == list(odd)
    for line in lines:
        assert {entry["class"] for entry in line["top"]} == set(CLASSES), line
        assert abs(sum(entry["probability"] for entry in line["top"]) - 1) < 1e-5
    by_file = {pathlib.Path(line["file"]).name: line["top"] for line in lines}
    for name in ("alpha.png", "interlaced.PNG", "a png.jpg", "no ending"):
        assert by_file[name] == by_file["rgb.png"], name
    assert by_file["a jpeg.png"] == by_file["turned.jpg"]

    # The picture as the model sees it, beside PIL's reading of the same file.
    for name in odd:
        if name.startswith("1x"):
            continue
        seen = temporary / "seen.png"
        run("classify", model, folder / name, "--seen", seen)
        stored = Image.open(io.BytesIO(odd[name]))
        expected = (numpy.asarray(stored).astype(numpy.int64) >> 8)[..., None].repeat(3, 2) if name == "16 bit.png" else \
            numpy.asarray(stored.convert("RGB")).astype(numpy.int64)
        got = numpy.asarray(Image.open(seen)).astype(numpy.int64)
        assert got.shape == expected.shape and numpy.abs(got - expected).max() <= 2, (name, numpy.abs(got - expected).max())

    bad = {"empty.png": b"", "gif.png": saved(rgb, "GIF"), "half.jpg": odd["turned.jpg"][:300], "half.png": odd["rgb.png"][:90],
           "huge.png": b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2,
                                                                                     0, 0, 0) + b"\0\0\0\0"}
    for name, content in bad.items():
        (folder / name).write_bytes(content)
        refused("classify", model, folder / name, words=[name])
    refused("classify", model, folder / "nowhere.png", words=["nowhere.png"])
    found = json_lines("classify", model, folder)  # those of a folder that can be read, by name
    assert [pathlib.Path(line["file"]).name for line in found] == sorted(n for n in odd if n.lower().endswith((".png", ".jpg", ".jpeg"))), found
    (folder / "none").mkdir()
    refused("classify", model, folder / "none", words=["none has no JPEG or PNG file"])
    done = run("classify", model, folder / "empty.png", folder / "rgb.png", folder / "half.jpg", "--json")
    assert [pathlib.Path(json.loads(line)["file"]).name for line in done.stdout.splitlines()] == ["rgb.png"]
    assert done.stderr.count("[image]") == 2 and "empty.png" in done.stderr and "half.jpg" in done.stderr, done.stderr
    refused("classify", temporary / "data", folder / "rgb.png", words=["not a folder of a vision transformer"])


def test_head_load(temporary, model):
    html = temporary / "load.html"
    line = json_lines("inspect", model, "--data", temporary / "data", "--html", html)[-1]
    load = numpy.array(line["head_load"])  # of the last routed layer: 2 shared, 1 of 2 routed heads
    assert load.shape == (2, 2) and numpy.abs(load.sum(1) - 1).max() < 1e-9 and line["head_load_images"] == 16, line
    assert line["head_load_layer"] == "block4.0.attn" and 0 <= line["top1"] <= 1
    report = html.read_text()
    for word in ("Head load by class", "block4.0.attn", "blue", "red", "routed head", "<svg"):
        assert word in report, word
    line = json_lines("inspect", "moh-vit-b-50")[-1]
    assert line["parameters"] == 90023512 and abs(line["activated"] - 0.5) < 1e-9
    assert line["flops_per_image"] < line["dense_flops_per_image"]


def test_example(temporary):
    """The model that the README classifies with."""
    example = pathlib.Path(__file__).parents[2] / "examples" / "moh-vit-cifar"
    assert json_lines("inspect", example)[-1]["parameters"] == 1602346
    Image.fromarray(picture(0, numpy.random.default_rng(0), (40, 32))).save(temporary / "blue.png")
    top = json_lines("classify", example, temporary / "blue.png")[-1]["top"]
    classes = json.loads((example / "config.json").read_text())["classes"]
    assert len({one["class"] for one in top} & set(classes)) == 5, top
    assert [one["probability"] for one in top] == sorted((one["probability"] for one in top), reverse=True)
    assert top[0]["class"] in ("airplane", "ship", "bird"), top  # what has sky or sea behind it


class Harm:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_files_that_mean_harm(temporary):
    marker = temporary / "executed"
    harm = Harm(f"touch {marker}")
    tensors = {"patch_embed1.proj.weight": torch.zeros(4, 3, 7, 7), "head.weight": torch.zeros(5, 8)}
    folder = temporary / "harm"
    folder.mkdir()
    torch.save({"model": tensors, "note": harm}, folder / "beside.pth")
    torch.save(harm, folder / "alone.pth")
    torch.save({"model": {**tensors, "extra": harm}}, folder / "inside.pth")
    torch.save({"model": tensors, "note": harm}, folder / "old.pth", _use_new_zipfile_serialization=False)
    (folder / "bare.pth").write_bytes(pickle.dumps(harm))
    with zipfile.ZipFile(folder / "other.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(harm, protocol=4))
    torch.save({"model": tensors}, folder / "whole.pth")
    whole = (folder / "whole.pth").read_bytes()
    cuts = {"half.pth": whole[:len(whole) // 2], "start.pth": whole[:100], "tail.pth": whole[:-30], "empty.pth": b""}
    for name, content in cuts.items():
        (folder / name).write_bytes(content)
    for path in sorted(folder.iterdir()):
        for command in (("convert", path, temporary / "converted"), ("eval", path, "--data", temporary / "data"),
                        ("classify", path, temporary / "odd" / "rgb.png"), ("inspect", path)):
            refused(*command)
            assert not marker.exists(), (command, "was executed")
        assert not (temporary / "converted").exists(), path
    for name in ("beside", "alone", "inside", "other"):
        refused("convert", folder / f"{name}.pth", temporary / "converted", words=[f"{name}.pth", "system"])
    for name in ("whole", "bare", "empty"):  # files where a folder is wanted, and files that are no archive
        for command in (("eval", folder / f"{name}.pth", "--data", temporary / "data"), ("inspect", folder / f"{name}.pth")):
            refused(*command, words=[f"{name}.pth", "moh convert FILE FOLDER"])
    for name in cuts:
        refused("convert", folder / name, temporary / "converted", words=[name])
    refused("convert", folder / "whole.pth", temporary / "converted", words=["whole.pth", "--preset"])
    refused("convert", folder / "whole.pth", temporary / "converted", "--preset", "moh-vit-s-75",
            words=["patch_embed1.proj.weight"])


with tempfile.TemporaryDirectory() as folder:
    temporary = pathlib.Path(folder)
    model = test_training_skips_broken_pictures(temporary)
    test_classes_that_do_not_fit(temporary, model)
    test_fp16_and_resume(temporary)
    test_odd_pictures(temporary, model)
    test_head_load(temporary, model)
    test_example(temporary)
    test_files_that_mean_harm(temporary)
print("ok")
