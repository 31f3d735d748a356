"""Builds the package: compiles the contract, and has source distributions carry it."""

import os
import shutil
import subprocess
import sys
import tempfile

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = os.path.dirname(os.path.abspath(__file__))
CONTRACT = os.path.join("gradclip", "v1", "gradclip.proto")


def proto_folder():
    """The folder of the contract: a source distribution's own, or the repository's."""
    for folder in (os.path.join(HERE, "proto"), os.path.join(HERE, "..", "..", "proto")):
        if os.path.exists(os.path.join(folder, CONTRACT)):
            return folder
    raise SystemExit(
        f"{CONTRACT} is not there: build from a clone of the repository or from an sdist"
    )


def run_protoc(arguments):
    """grpcio-tools' protoc, or else the one on the PATH."""
    try:
        import grpc_tools.protoc
    except ImportError:
        if not shutil.which("protoc"):
            raise SystemExit(
                "no protoc: pip install grpcio-tools, or apt-get install protobuf-compiler"
            ) from None
        subprocess.run(["protoc", *arguments], check=True)
        return
    include = os.path.join(os.path.dirname(grpc_tools.__file__), "_proto")
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{include}", *arguments], check=True
    )


class BuildPy(build_py):
    """Adds contract.binpb, the contract's descriptor, and _contract.pyi, its types."""

    def run(self):
        super().run()
        root = (
            os.path.join(HERE, "src") if getattr(self, "editable_mode", False) else self.build_lib
        )
        package = os.path.join(root, "gradclip")
        with tempfile.TemporaryDirectory() as work:
            descriptor = os.path.join(work, "contract.binpb")
            run_protoc(
                [
                    f"-I{proto_folder()}",
                    "--include_imports",
                    f"--descriptor_set_out={descriptor}",
                    f"--pyi_out={work}",
                    CONTRACT,
                ]
            )
            shutil.copyfile(descriptor, os.path.join(package, "contract.binpb"))
            stub = os.path.join(work, "gradclip", "v1", "gradclip_pb2.pyi")
            shutil.copyfile(stub, os.path.join(package, "_contract.pyi"))


class Sdist(sdist):
    """Carries the contract."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        target = os.path.join(base_dir, "proto", CONTRACT)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copyfile(os.path.join(proto_folder(), CONTRACT), target)


setup(cmdclass={"build_py": BuildPy, "sdist": Sdist})
