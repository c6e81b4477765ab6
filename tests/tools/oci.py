#!/usr/bin/env python3
"""Makes an OCI image archive of one layer from files of this machine; the libraries that a program needs come along.

  oci.py NAME:TAG OUT.tar [--user UID:GID] [--entrypoint JSON] [--env NAME=VALUE]... CONTENT...

CONTENT is  /path=FILE     a file, with what `ldd` says it needs (path ends with /: all files of the folder FILE, alone)
            /path@TARGET   a symbolic link
            /path/:UID     an empty folder of that user
The same input makes the same bytes. Prints name and compressed size; does nothing when OUT.tar was made from the same input.
"""
import argparse
import gzip
import hashlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile


def entry(path, kind=tarfile.REGTYPE, mode=0o755, **more):
    info = tarfile.TarInfo(path.strip("/"))
    info.type, info.mode = kind, mode
    for name, value in more.items():
        setattr(info, name, value)
    return info


def libraries(program):
    """Paths at which the loader looks for the shared libraries of a program; none for a static one or a plain file."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    if "not found" in listed:
        sys.exit(f"{program} needs a library that is not here:\n{listed}")
    return re.findall(r"(/\S+) \(0x", listed)


def collect(contents):
    """path in the image -> (kind, where from)"""
    found = {"/tmp/": ("dir", 0)}
    for content in contents:
        match = re.fullmatch(r"(/[^=@:]+)([=@:])(.+)", content)
        if not match:
            sys.exit(f"{content}: expected /path=FILE, /path@TARGET or /path/:UID")
        path, kind, value = match.groups()
        if kind == "@":
            found[path] = ("link", value)
        elif kind == ":":
            found[path] = ("dir", int(value))
        elif path.endswith("/"):
            for file in pathlib.Path(value).iterdir():
                found[path + file.name] = ("file", str(file.resolve()))
        else:
            found[path] = ("file", os.path.realpath(value))
            found |= {lib: ("file", os.path.realpath(lib)) for lib in libraries(value)}
    return dict(sorted(found.items()))


def layer(found):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, (kind, value) in found.items():
            if kind == "link":
                tar.addfile(entry(path, tarfile.SYMTYPE, linkname=value))
            elif kind == "dir":
                mode = 0o1777 if path == "/tmp/" else 0o700
                tar.addfile(entry(path, tarfile.DIRTYPE, mode, uid=value, gid=value))
            else:
                with open(value, "rb") as file:
                    tar.addfile(entry(path, mode=os.stat(value).st_mode & 0o777, size=os.path.getsize(value)), file)
    return packed.getvalue()


def digest(blob):
    return "sha256:" + hashlib.sha256(blob).hexdigest()


def described(kind, blob, **more):
    return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest(blob), "size": len(blob), **more}


def archive(args, plain, compressed):
    config = {"Entrypoint": json.loads(args.entrypoint), "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", *args.env]}
    if args.user:
        config["User"] = args.user
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    image = json.dumps({"architecture": machine, "os": "linux", "config": config, "rootfs": {"type": "layers", "diff_ids": [digest(plain)]}})
    image = image.encode()
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": described("config.v1+json", image)}
    manifest = json.dumps(manifest | {"layers": [described("layer.v1.tar+gzip", compressed)]}).encode()
    named = described("manifest.v1+json", manifest, annotations={"io.containerd.image.name": args.name, "org.opencontainers.image.ref.name": args.name.rsplit(":", 1)[-1]})
    blobs = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": json.dumps({"schemaVersion": 2, "manifests": [named]}).encode()}
    return blobs | {"blobs/sha256/" + digest(b)[7:]: b for b in (image, manifest, compressed)}


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("name")
    parser.add_argument("out")
    parser.add_argument("--user")
    parser.add_argument("--entrypoint", default="[]")
    parser.add_argument("--env", action="append", default=[])
    parser.add_argument("contents", nargs="*", default=[])
    args = parser.parse_intermixed_args()
    found = collect(args.contents)
    stat = {value: list(os.stat(value)[6:9:2]) for kind, value in found.values() if kind == "file"}
    made_from = json.dumps([vars(args), found, stat])
    stamp = pathlib.Path(args.out + ".made-from")
    if not (os.path.exists(args.out) and stamp.exists() and stamp.read_text() == made_from):
        plain = layer(found)
        with tarfile.open(args.out + ".new", "w") as tar:
            for path, blob in archive(args, plain, gzip.compress(plain, 6, mtime=0)).items():
                tar.addfile(entry(path, mode=0o644, size=len(blob)), io.BytesIO(blob))
        os.replace(args.out + ".new", args.out)
        stamp.write_text(made_from)
    print(f"{args.name:<36}{os.path.getsize(args.out) / 1e6:6.1f} MB")


main()
