"""What pyproject.toml can't say: the two extension modules, and that they serve every Python from 3.11 on."""

from setuptools import setup

setup(
    cffi_modules=["hyper/build_ffi.py:ffi", "hyper/guest/build_ffi.py:ffi"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
