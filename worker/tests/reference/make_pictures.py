"""Writes pictures in all forms that files have, and what CLIP's processor makes of them.

    python worker/tests/reference/make_pictures.py [dataset/tests/fixtures/pictures]

Needs Pillow, numpy, torch and transformers as in requirements.txt. `expected.bin` holds, for each file in the order of
`expected.json`, the picture after resizing and cropping, before it is scaled and normalised: `side * side * 3` bytes,
line by line, red, green, blue.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from transformers.image_utils import load_image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

WIDTH, HEIGHT = 97, 71
ORIENTATION = 0x0112


def picture(seed=0):
    """Smooth colours, edges and a little noise."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    random = np.random.default_rng(seed)
    red = 127 + 120 * np.sin(x / 9.0 + seed)
    green = 255 * ((x // 12 + y // 9) % 2)
    blue = 255 * y / HEIGHT
    values = np.stack([red, green, blue], axis=-1) + random.normal(0, 6, (HEIGHT, WIDTH, 3))
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8), "RGB")


def exif(orientation):
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def files(out):
    """Name, and the side that it is scaled to."""
    rgb = picture()
    rgb.save(out / "rgb.png")
    rgb.convert("L").save(out / "grey.png")
    rgb.quantize(64).save(out / "palette.png")
    rgb.convert("1").save(out / "two-colours.png")
    rgb.save(out / "rgb.jpg", quality=92, subsampling=0)
    rgb.save(out / "half-colours.jpg", quality=85, subsampling=2)
    rgb.convert("L").save(out / "grey.jpg", quality=90)
    rgb.convert("CMYK").save(out / "cmyk.jpg", quality=92)
    rgb.save(out / "progressive.jpg", quality=90, progressive=True)
    rgb.save(out / "lossy.webp", quality=90)
    rgb.save(out / "lossless.webp", lossless=True)
    for orientation in [3, 6, 8]:
        rgb.save(out / f"turned-{orientation}.jpg", quality=95, exif=exif(orientation))
    rgb.save(out / "turned-6.png", exif=exif(6))
    small = rgb.crop((0, 0, 20, 15))
    small.save(out / "small.png")
    wide = rgb.resize((300, 40))
    wide.save(out / "wide.png")
    names = sorted(path.name for path in out.iterdir() if path.suffix in {".png", ".jpg", ".webp"})
    return [(name, 32) for name in names] + [("rgb.png", 33), ("rgb.jpg", 24), ("small.png", 48)]


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    cases, expected = files(out), b""
    for name, side in cases:
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size=side, do_rescale=False, do_normalize=False
        )
        pixels = processor(load_image(str(out / name)), return_tensors="np")["pixel_values"][0]
        assert pixels.shape == (3, side, side), (name, pixels.shape)
        expected += np.ascontiguousarray(pixels.transpose(1, 2, 0)).astype(np.uint8).tobytes()
    (out / "expected.bin").write_bytes(expected)
    listed = [{"file": name, "side": side} for name, side in cases]
    (out / "expected.json").write_text(json.dumps(listed, indent=1) + "\n")


if __name__ == "__main__":
    here = Path(__file__).parents[3]
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else here / "dataset" / "tests" / "fixtures" / "pictures")
