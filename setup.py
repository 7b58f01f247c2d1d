"""What pyproject.toml can't say: the extension modules, and that they serve every Python from 3.11 on."""

from setuptools import setup

# Folders with a build_ffi.py: the core, the guest kit, and each backend's own data path.
EXTENSIONS = [
    "hyper",
    "hyper/guest",
    "backends/blkback",
    "backends/netback",
]

setup(
    cffi_modules=[f"{folder}/build_ffi.py:ffi" for folder in EXTENSIONS],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
