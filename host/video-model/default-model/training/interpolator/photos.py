"""The photographs that the training pictures are cut from, each with its licence, and textures drawn here.

    python photos.py FOLDER

fetches the packages that carry them with `pip download` and `apt-get download` (a Debian system) and writes PNGs to FOLDER.
"""
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

# package -> (how to get it, [(path inside, licence, credit)])
PHOTOS = {
    "scikit-image==0.16.2": ("3.7", [
        ("skimage/data/astronaut.png", "public domain", "NASA"),
        ("skimage/data/brick.png", "CC0", "CC0Textures"),
        ("skimage/data/grass.png", "CC0", "linolafett"),
        ("skimage/data/gravel.png", "CC0", "CC0Textures"),
        ("skimage/data/chelsea.png", "CC0", "Stefan van der Walt"),
        ("skimage/data/coffee.png", "CC0", "Rachel Michetti"),
        ("skimage/data/hubble_deep_field.jpg", "public domain", "NASA"),
        ("skimage/data/ihc.png", "no known restrictions", "Center for Microscopy and Molecular Imaging"),
        ("skimage/data/retina.jpg", "CC0", "Mikael Haggstrom"),
        ("skimage/data/rocket.jpg", "CC0", "SpaceX"),
    ]),
    "scipy==1.9.3": ("3.9", [("scipy/misc/face.dat", "public domain", "public-domain-image.com")]),
    "scikit-learn==1.2.2": ("3.9", [
        ("sklearn/datasets/images/china.jpg", "CC BY 2.0", "danielbuechele"),
        ("sklearn/datasets/images/flower.jpg", "CC BY 2.0", "vultilion"),
    ]),
    "lomiri-wallpapers-16.04": ("deb", [
        ("aitzgorri_by_Aitzol_Berasategi.jpg", "CC BY 4.0", "Aitzol Berasategi"),
        ("friends_by_Aitzol_Berasategi.jpg", "CC BY 4.0", "Aitzol Berasategi"),
        ("life_by_Aitzol_Berasategi.jpg", "CC BY 4.0", "Aitzol Berasategi"),
        ("picosdeeuropa_by_Aitzol_Berasategi.jpg", "CC BY 4.0", "Aitzol Berasategi"),
        ("sunset_by_Aitzol_Berasategi.jpg", "CC BY 4.0", "Aitzol Berasategi"),
        ("Picture_0B_by_freespace.jpg", "CC BY 4.0", "Trevor \"Freespace\""),
        ("Picture_1A_by_freespace.jpg", "CC BY 4.0", "Trevor \"Freespace\""),
        ("seeding_by_Clements_Engelhardt.jpg", "CC0", "Clemens Engelhardt"),
        ("umang_by_Abhishek_Mudgal.jpg", "CC BY 4.0", "Abhishek Mudgal"),
        ("Wine_by_Jakkub_Mede.jpg", "CC BY 4.0", "Jakub Mede"),
    ]),
}
SIDE_MAX = 1600  # larger photographs are reduced: what a crop of 300 pixels shows should be more than a blur


def download(package, how, folder):
    if how == "deb":
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
        subprocess.run(["dpkg", "-x", next(folder.glob(f"{package}*.deb")), folder], check=True)
        return
    platforms = [a for p in ("manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64")
                 for a in ("--platform", p)]
    subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--python-version", how,
                    *platforms, "-d", folder, package], check=True)
    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder)


def open_photo(path):
    if path.name == "face.dat":  # scipy keeps it as bzip2 of raw 768x1024 RGB
        import bz2
        return Image.fromarray(np.frombuffer(bz2.decompress(path.read_bytes()), np.uint8).reshape(768, 1024, 3))
    return Image.open(path).convert("RGB")


def fetch(out):
    out.mkdir(parents=True, exist_ok=True)
    for package, (how, files) in PHOTOS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            download(package, how, folder)
            for inside, _, _ in files:
                found = next(p for p in folder.rglob(Path(inside).name) if str(p).endswith(inside))
                photo = open_photo(found)
                photo.thumbnail((SIDE_MAX, SIDE_MAX), Image.LANCZOS)
                photo.save(out / f"{Path(inside).stem}.png")
    print(f"{len(list(out.glob('*.png')))} photographs in {out}")


def dead_leaves(rng, side=640):
    """Overlapping discs, boxes and bars whose sizes follow a power law: edges and occlusions at every scale, as in photographs."""
    palette = rng.integers(0, 256, (int(rng.integers(4, 40)), 3))
    scale = 2  # drawn larger and reduced, for smooth edges
    picture = Image.new("RGB", (side * scale, side * scale), tuple(int(v) for v in palette[0]))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(300, 1200))):
        x, y = rng.uniform(0, side * scale, 2)
        radius = scale * 3 * rng.uniform(1e-4, 1) ** -0.45
        colour = tuple(int(v) for v in np.clip(palette[rng.integers(len(palette))] + rng.normal(0, 14, 3), 0, 255))
        kind = rng.integers(3)
        if kind == 0:
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
        else:
            angle, ratio = rng.uniform(0, 6.3), rng.uniform(0.05, 1) if kind == 1 else 0.05
            c, s = radius * np.cos(angle), radius * np.sin(angle)
            corners = [(c - ratio * -s, s - ratio * c), (c + ratio * -s, s + ratio * c), (-c + ratio * -s, -s + ratio * c), (-c - ratio * -s, -s - ratio * c)]
            draw.polygon([(x + a, y + b) for a, b in corners], fill=colour)
    return picture.resize((side, side), Image.LANCZOS)


def noise(rng, side=640):
    """Random colours at several scales, added up: clouds, marble, grain."""
    total = np.zeros((side, side, 3), np.float32)
    fall, coarsest = rng.uniform(0.4, 1.1), int(rng.integers(1, 5))
    for octave in range(coarsest, 9):
        cells = np.uint8(rng.integers(0, 256, (2**octave, 2**octave, 3)))
        if rng.uniform() < 0.3:
            cells[:] = cells[..., :1]
        layer = np.asarray(Image.fromarray(cells).resize((side, side), Image.BICUBIC), np.float32) / 255 - 0.5
        total += layer * 2 ** (-fall * (octave - coarsest))
    total = (total - total.mean()) / total.std() * rng.uniform(0.08, 0.25) + rng.uniform(0.25, 0.75, 3)
    return Image.fromarray(np.uint8(np.clip(total, 0, 1) * 255))


def drawn(count, seed=0):
    rng = np.random.default_rng(seed)
    return [dead_leaves(rng) if i % 3 else noise(rng) for i in range(count)]


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
