"""Drives a server with the unmodified OpenAI client; the address and the key come from the environment."""

import io
import struct
import zlib

import openai

client = openai.OpenAI()
SMALL = {"steps": 1, "key_frames": 2, "fps": 8, "guidance": 1.0, "seed": 1}


def png(width: int, height: int) -> io.BytesIO:
    """A plain red picture, as a file with a name."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\xd0\x20\x20" * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    file = io.BytesIO(data)
    file.name = "first.png"
    return file


video = client.videos.create_and_poll(prompt="a red star moves up", seconds="1", extra_body=SMALL)
assert video.status == "completed", video
assert video.object == "video" and video.progress == 100 and video.seconds == "1", video
assert client.videos.retrieve(video.id).id == video.id

content = client.videos.download_content(video.id).read()
assert content[4:8] == b"ftyp", content[:16]
assert client.videos.download_content(video.id, variant="thumbnail").read()[:4] == b"RIFF"

from_picture = client.videos.create_and_poll(
    prompt="a red star", size="256x256", input_reference=png(64, 64), extra_body=SMALL
)
assert from_picture.status == "completed" and from_picture.size == "256x256", from_picture

remix = client.videos.remix(video.id, prompt="a blue circle moves left")
assert remix.remixed_from_video_id == video.id, remix
remix = client.videos.poll(remix.id)
assert remix.status == "completed", remix

listed = [item.id for item in client.videos.list(limit=2)]
assert set(listed) == {video.id, from_picture.id, remix.id}, listed
assert client.videos.delete(video.id).deleted
try:
    client.videos.retrieve(video.id)
    raise AssertionError("a deleted video is still there")
except openai.NotFoundError as error:
    assert error.body and "message" in error.body, error.body

try:
    client.videos.create(prompt="a", size="13x7")
    raise AssertionError("a wrong size was accepted")
except openai.BadRequestError as error:
    assert error.param == "size", error
print("ok")
