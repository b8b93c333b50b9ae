"""The bytes of the public datasets' files to arrays. Nothing is unpickled; ValueError for what does not fit."""

import io
import math
import struct

import numpy as np


def idx(content: bytes) -> np.ndarray:
    """An idx file of unsigned bytes (LeCun's MNIST format): uint8, of the shape in its header."""
    if len(content) < 4 or content[:3] != b"\0\0\x08" or not 1 <= content[3] <= 4:
        raise ValueError("not an idx file of unsigned bytes")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError("its header is cut short")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if math.prod(shape) != len(content) - start:
        raise ValueError(
            f"{len(content) - start:,} bytes of data where its header says {list(shape)}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def npy(content: bytes) -> np.ndarray:
    """A .npy file of integers: its header is checked against its length before anything is allocated."""
    file = io.BytesIO(content)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        shape, fortran_order, dtype = read_header[np.lib.format.read_magic(file)](file)
    except Exception as error:  # of many kinds: NumPy evaluates the header as a Python literal
        raise ValueError(
            f"not a .npy file, or its header is damaged ({type(error).__name__})"
        ) from None
    if dtype.kind not in "iu" or fortran_order:
        raise ValueError(
            f"holds {dtype}{' in Fortran order' if fortran_order else ''}; accepted: integers in C order"
        )
    if math.prod(shape) * dtype.itemsize != len(content) - file.tell() or min(shape, default=1) < 0:
        raise ValueError(
            f"{len(content) - file.tell():,} bytes of data where its header says {list(shape)} {dtype}"
        )
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape)


def cifar(content: bytes, *, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Records of the CIFAR binary version: ``labels`` label bytes, the last of which counts, then 3 planes of 32 × 32.

    Gives uint8 ``[n, 32, 32, 3]`` and int32 ``[n]``.
    """
    size = labels + 3072
    if not content or len(content) % size:
        raise ValueError(f"{len(content):,} bytes; accepted: records of {size:,} bytes")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    images = records[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), records[:, labels - 1].astype(np.int32)
