"""Downloads that break off, checksums, and lines of damaged files, against a small server of this machine."""

import gzip
import hashlib
import http.server
import threading

import pytest

from diffgr_jax.data import sources
from diffgr_jax.data.records import BadRow
from diffgr_jax.data.sources import Source, check_manifest, download, find_sources, read_lines

CONTENT = bytes(range(256)) * 400


class Handler(http.server.BaseHTTPRequestHandler):
  """Serves CONTENT as /file (ranges allowed) and as /whole (not); breaks off after `most` bytes."""

  most, ranges, sent = 1 << 30, (), 0

  def do_GET(self):
    if self.path not in ("/file", "/whole"):
      self.send_error(404)
      return
    wanted = self.headers.get("Range")
    begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.path == "/file" else 0
    Handler.ranges = (*Handler.ranges, wanted)
    self.send_response(206 if begin else 200)
    self.send_header("Content-Length", str(len(CONTENT) - begin))
    self.end_headers()
    self.wfile.write(CONTENT[begin : begin + Handler.most])

  def log_message(self, *_):
    pass


@pytest.fixture
def server():
  Handler.most, Handler.ranges = 1 << 30, ()
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()


@pytest.mark.parametrize("name", ["file", "whole"])
def test_a_download_goes_on_where_it_broke_off(server, tmp_path, name):
  Handler.most, path = 70_000, tmp_path / "kept" / "file.bin"
  with pytest.raises(ValueError, match=r"run the command again to go on") as caught:
    download(f"{server}/{name}", path)
  assert "\n" not in str(caught.value)
  assert not path.exists()
  Handler.most = 1 << 30
  assert download(f"{server}/{name}", path).read_bytes() == CONTENT
  assert Handler.ranges == (None, "bytes=70000-")
  download(f"{server}/{name}", path)
  assert len(Handler.ranges) == 2  # what is there is not fetched again
  assert [file.name for file in path.parent.iterdir()] == ["file.bin"]


def test_under_a_url_the_first_name_that_exists_is_taken(server, tmp_path):
  wanted = {"a": ("*.gz", "no", "file"), "b": ("nothing",)}
  found = find_sources(f"{server}/", wanted, tmp_path)
  assert found == [Source("a", tmp_path / "file")]
  with pytest.raises(ValueError, match="run the command again"):
    download("http://127.0.0.1:1/file", tmp_path / "unreachable")


def test_in_a_folder_all_files_of_the_first_fitting_name_are_taken(tmp_path):
  (tmp_path / "dev").mkdir()
  for name in ("t-01.gz", "t-00.gz", "other.gz", "dev/d-00.txt"):
    (tmp_path / name).write_text("x")
  wanted = {"train": ("train.gz", "t-*.gz", "other.gz"), "dev": ("d-*.txt",), "none": ("n*",)}
  found = [(source.role, source.path.name) for source in find_sources(str(tmp_path), wanted, tmp_path / "x")]
  assert found == [("train", "t-00.gz"), ("train", "t-01.gz"), ("dev", "d-00.txt")]
  with pytest.raises(FileNotFoundError, match=r"is no folder; config\.dataset_path"):
    find_sources(str(tmp_path / "nowhere"), wanted, tmp_path)


def test_checksums_are_recorded_compared_and_not_made_twice(tmp_path, monkeypatch):
  file, manifest = tmp_path / "a.tsv", tmp_path / "SHA256SUMS"
  file.write_bytes(CONTENT)
  right = hashlib.sha256(CONTENT).hexdigest()
  manifest.write_text(f"{right}  ./a.tsv\n{'0' * 64} *b.tsv\n")
  assert check_manifest([Source("x", file)], tmp_path / "kept", str(manifest))[0].sha256 == right
  with monkeypatch.context() as patch:
    patch.setattr(sources, "_sha256", lambda path: pytest.fail("hashed again"))
    assert check_manifest([Source("x", file)], tmp_path / "kept")[0].sha256 == right
  file.write_bytes(CONTENT + b"more")
  with pytest.raises(ValueError, match=r"a\.tsv has sha256 .* but .*SHA256SUMS says .*: fetch it anew"):
    check_manifest([Source("x", file)], tmp_path / "kept", str(manifest))
  manifest.write_text(f"{right}  b.tsv\n")
  with pytest.raises(ValueError, match=r"names no a\.tsv"):
    check_manifest([Source("x", file)], tmp_path / "kept", str(manifest))
  manifest.write_text("abc a.tsv\n")
  with pytest.raises(ValueError, match="SHA256SUMS:1: a line is a sha256"):
    check_manifest([Source("x", file)], tmp_path / "kept", str(manifest))
  with pytest.raises(FileNotFoundError, match=r"config\.dataset_manifest=/no/such"):
    check_manifest([Source("x", file)], tmp_path / "kept", "/no/such")


def test_lines_of_plain_and_gzip_files(tmp_path):
  text = b"".join(b"line %d\n" % i for i in range(5000)) + b"last"
  for name, content in (("a.txt", text), ("a.gz", gzip.compress(text))):
    (tmp_path / name).write_bytes(content)
    assert list(read_lines(tmp_path / name)) == list(enumerate(text.splitlines(keepends=True), start=1))


@pytest.mark.parametrize("damage", ["cut", "flipped", "not gzip"])
def test_a_damaged_gzip_says_where(tmp_path, damage):
  text, path = (
    b"".join(hashlib.sha256(b"%d" % i).hexdigest().encode() + b"\n" for i in range(30_000)),
    tmp_path / "a.gz",
  )
  packed = bytearray(gzip.compress(text))
  if damage == "cut":
    packed = packed[: len(packed) // 2]
  elif damage == "flipped":
    packed[-8] ^= 1  # the checksum
  else:
    packed = bytearray(text)
  path.write_bytes(packed)
  seen = []
  with pytest.raises(BadRow, match="the gzip file is cut off or damaged behind this line") as caught:
    seen.extend(line for _, line in read_lines(path))
  assert caught.value.kind == "broken gzip"
  assert caught.value.place == f"{path}:{len(seen)}"
  assert b"".join(seen) == text[: sum(map(len, seen))]
  if damage == "cut":
    assert len(seen) > 1000
