"""A GPU that is not there: tensors that say ``cuda:0`` and compute on the CPU.

A `DeviceTensor` wraps a CPU tensor with its real values. Every operation of torch on one passes
`_Dispatch`, which raises where CUDA would (an operation mixes devices, a generator of the CPU draws
on the device, an array is made of device memory) and counts what makes a GPU slow: launches of
kernels, and places where the host waits for the device. To the inside of torch the tensors are on
the CPU, so that no build with CUDA is needed, and what Python sees of them is on the device.
"""

import contextlib
import sys
from collections import Counter
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["DeviceTensor", "simulated_gpu"]

CUDA = torch.device("cuda", 0)
_GIBIBYTE = 2**30

# The host reads numbers to know a size, a value or a failure.
_WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim",
    "unique_consecutive", "multinomial", "_linalg_eigh", "_linalg_svd", "linalg_eig",
}  # fmt: skip
# No kernel: memory only. Views are recognised by their schema.
_NO_LAUNCH = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided",
              "_local_scalar_dense", "lift_fresh"}  # fmt: skip
_COPIES = {"_to_copy", "copy_"}
_PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "mv", "addmv", "dot"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# A number on the host is an operand like one of Python, but not of these.
_NO_HOST_SCALARS = {"cat", "stack", "mm", "addmm", "bmm", "baddbmm", "index_add_", "scatter_"}


def _is_device(device):
    return device is not None and torch.device(device).type == "cuda"


class DeviceTensor(torch.Tensor):
    """A tensor that says that it is on ``cuda:0``; ``held`` has its values."""

    @staticmethod
    def __new__(cls, held):
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype,
        )  # fmt: skip
        wrapper.held = held
        return wrapper

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self):
        return f"DeviceTensor({self.held!r})"

    def get_device(self):
        return CUDA.index

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return _call(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _active().run(func, args, kwargs or {})


def _plain(func, args, kwargs):
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


def _refuse_array(*args, **kwargs):
    raise TypeError(
        "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to "
        "host memory first."
    )


def _destination(args, kwargs):  # of `Tensor.to` -> device or None, the other arguments
    device = kwargs.pop("device", None)
    others = []
    for value in args:
        if isinstance(value, torch.Tensor):
            device = value.device
            others.append(value.dtype)
        elif isinstance(value, str | torch.device):
            device = value
        else:
            others.append(value)
    if isinstance(other := kwargs.pop("other", None), torch.Tensor):
        device, kwargs["dtype"] = other.device, other.dtype
    return device, others


def _to(tensor, *args, **kwargs):
    device, others = _destination(args, kwargs)
    here = isinstance(tensor, DeviceTensor)
    if device is None or _is_device(device) == here:
        return _plain(torch.Tensor.to, (tensor, *others), kwargs)
    return _Move.apply(tensor, kwargs.pop("non_blocking", False)).to(*others, **kwargs)


class _Move(torch.autograd.Function):
    """The copy from one device to the other, differentiable as torch's is."""

    @staticmethod
    def forward(ctx, tensor, non_blocking):
        gpu = _active()
        if isinstance(tensor, DeviceTensor):
            gpu.wait("copy to the host")
            gpu.launches["copy"] += 1
            return tensor.held.clone()
        gpu.refuse([tensor.dtype])
        gpu.launches["copy"] += 1
        if not non_blocking:
            gpu.wait("copy from the host")
        return DeviceTensor(tensor.detach().clone())

    @staticmethod
    def backward(ctx, gradient):
        return _Move.apply(gradient, False), None


def _made(func, args, kwargs):  # tensors made of numbers of Python, or of other tensors
    device = kwargs.pop("device", None)
    if func is torch.Tensor.new_tensor and device is None:
        device = args[0].device
    if func is torch.Tensor.new_tensor:
        kwargs.setdefault("dtype", args[0].dtype)
        func, args = torch.tensor, args[1:]
    if isinstance(args[0], DeviceTensor):
        dtype = kwargs.get("dtype") or args[0].dtype
        made = args[0].to(dtype=dtype, device=CUDA if device is None else device)
        return made.detach().clone() if func is torch.tensor else made
    made = func(*args, **kwargs, device="cpu")
    return made if device is None else _to(made, device)


def _host(tensor, *args, **kwargs):
    return _to(tensor, "cpu")


def _gpu(tensor, *args, **kwargs):
    return _to(tensor, CUDA)


def _tolist(tensor):
    return _host(tensor).tolist()


_METHODS = {
    torch.Tensor.to: _to,
    torch.Tensor.cpu: _host,
    torch.Tensor.cuda: _gpu,
    torch.Tensor.tolist: _tolist,
    torch.Tensor.numpy: _refuse_array,
    torch.Tensor.__array__: _refuse_array,
    torch.Tensor.record_stream: lambda tensor, stream: None,
    torch.Tensor.pin_memory: lambda tensor, *args: tensor,
}
# torch calls no mode inside of a backward pass, but what a class defines
for _method, _function in _METHODS.items():
    setattr(DeviceTensor, _method.__name__, _function)
_MAKERS = {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor}


def _call(func, args, kwargs):
    """Do what Python asks for, with what the inside of torch must not see done here."""
    if func in _MAKERS:
        return _made(func, args, dict(kwargs))
    on_host = args and isinstance(args[0], torch.Tensor) and not isinstance(args[0], DeviceTensor)
    if func in _METHODS and not (on_host and func in (torch.Tensor.numpy, torch.Tensor.__array__,
                                                      torch.Tensor.tolist)):  # fmt: skip
        return _METHODS[func](*args, **kwargs)
    return _plain(func, args, kwargs)


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return _call(func, args, kwargs or {})


class _Dispatch(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls):
        return False  # nothing is compiled here, and its guard takes longer than what is guarded

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.gpu.run(func, args, kwargs or {})


class SimulatedGPU:
    """What was asked of the device.

    Attributes
    ----------
    waits : Counter
        How often the host waited, by why and where in the package (file and line).
    launches : Counter
        Kernels by name.
    """

    def __init__(self, without):
        self._without = without
        self.reset()

    def reset(self):
        """Forget all counts."""
        self.waits, self.launches = Counter(), Counter()

    @property
    def n_waits(self):
        return self.waits.total()

    @property
    def n_launches(self):
        return self.launches.total()

    def put(self, tensor):
        """Return a copy on the device."""
        return DeviceTensor(tensor.detach().clone())

    def wait(self, why):
        frame = sys._getframe(1)
        while frame is not None and "/skpudle/" not in frame.f_code.co_filename:
            frame = frame.f_back
        name = frame and frame.f_code.co_filename.rpartition("/skpudle/")[2]
        self.waits[why, f"{name}:{frame.f_lineno}" if frame else "outside"] += 1

    def run(self, func, args, kwargs):
        """Do an operation on what is held, as CUDA would."""
        name = func._schema.name.removeprefix("aten::")
        tensors = list(_tensors([*args, *kwargs.values()]))
        on_device = [t for t in tensors if isinstance(t, DeviceTensor)]
        if on_device and len(on_device) < len(tensors) and name not in _COPIES:
            self._check_mixed(name, args, [t for t in tensors if t not in _Identities(on_device)])
        device = kwargs.get("device")
        there = bool(on_device) if device is None else _is_device(device)
        if name == "_to_copy" and device is not None and there != isinstance(args[0], DeviceTensor):
            self.wait("copy from the host" if there else "copy to the host")
        if name == "copy_":
            there = isinstance(args[0], DeviceTensor)
            if there != isinstance(args[1], DeviceTensor):
                self.wait("copy from the host" if there else "copy to the host")
        self._check_generator(kwargs.get("generator"), there)
        if there:
            self.refuse([kwargs.get("dtype"), *(t.dtype for t in tensors if t.ndim)])
        if on_device or there:
            self._count(func, name, args, kwargs)
        held_args = _mapped(_held, args)
        held = {name: _mapped(_held, value) for name, value in kwargs.items()}
        if name in _PRODUCTS and there and not _products_are_full():
            held_args = _mapped(_to_tf32, held_args)
        if device is not None:
            held["device"] = torch.device("cpu")
        result = func(*held_args, **held)
        written = _written(func, args, kwargs)
        if written:
            return written[0] if len(written) == 1 else tuple(written)
        return _mapped(_wrapped, result) if there else result

    def refuse(self, dtypes):
        if self._without is not None and self._without in dtypes:
            raise TypeError(f"The device has no {self._without}.")

    def _check_mixed(self, name, args, on_host):
        frame = sys._getframe(2)
        while frame.f_code.co_filename.endswith(("_compile.py", "eval_frame.py", __file__)):
            frame = frame.f_back
        if frame.f_code.co_filename.endswith("autograd/graph.py"):
            return  # the engine makes zeros where it believes the tensors to be
        if name in _INDEXING and isinstance(args[0], DeviceTensor):
            if any(t is args[0] or (len(args) > 2 and t is args[2] and t.ndim) for t in on_host):
                raise RuntimeError(f"{name} mixes cuda:0 and cpu.")
            self.wait("index from the host")
            return
        written_on_host = name.endswith("_") and not isinstance(args[0], DeviceTensor)
        if written_on_host or name in _NO_HOST_SCALARS or any(t.ndim for t in on_host):
            shapes = [tuple(t.shape) for t in on_host]
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"cuda:0 and cpu! ({name}; on the cpu are those of shape {shapes})"
            )

    def _check_generator(self, generator, there):
        if generator is not None and there != (generator.device.type == "cuda"):
            raise RuntimeError(
                f"Expected a generator of the device, but found one on {generator.device}."
            )

    def _count(self, func, name, args, kwargs):
        is_view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if not is_view and name not in _NO_LAUNCH:
            self.launches[name] += 1
        if name in _WAITS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            self.wait(name)
        if name in _INDEXING:
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            if masks:
                self.wait(f"{name} by a mask")


def _tensors(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _mapped(function, value):  # torch's own does this for any tree, and takes ten times as long
    if isinstance(value, list | tuple):
        return type(value)(_mapped(function, item) for item in value)
    return function(value) if isinstance(value, torch.Tensor) else value


def _products_are_full():
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return matmul.fp32_precision != "tf32"
    return not matmul.allow_tf32


def _to_tf32(value):
    """Keep ten bits of the significand of float32, as the operands of a product in TF32 do."""
    if value.dtype != torch.float32:
        return value
    return (value.contiguous().view(torch.int32) + 0x1000 & -0x2000).view(torch.float32)


class _Identities:
    """Whether an object is one of some, since `in` compares tensors by their values."""

    def __init__(self, objects):
        self._ids = {*map(id, objects)}

    def __contains__(self, item):
        return id(item) in self._ids


def _held(value):
    return value.held if isinstance(value, DeviceTensor) else value


def _wrapped(value):
    return value if isinstance(value, DeviceTensor) else DeviceTensor(value)


def _written(func, args, kwargs):
    """Return the tensors that an operation wrote into and returns."""
    if not any(r.alias_info and r.alias_info.is_write for r in func._schema.returns):
        return []
    values = [
        args[i] if i < len(args) else kwargs.get(argument.name)
        for i, argument in enumerate(func._schema.arguments)
        if argument.alias_info and argument.alias_info.is_write
    ]
    return [value for value in values if isinstance(value, torch.Tensor)]


_gpus = []


def _active():
    return _gpus[-1]


class _Stream:
    def __init__(self, device=None):
        pass

    def record_event(self):
        pass

    def wait_event(self, event):
        pass


_PRESENT = {
    "_lazy_init": lambda: None,
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "mem_get_info": lambda device=None: (60 * _GIBIBYTE, 80 * _GIBIBYTE),
    "memory_reserved": lambda device=None: 0,
    "memory_allocated": lambda device=None: 0,
    "Stream": _Stream,
    "current_stream": _Stream,
    "stream": lambda stream: contextlib.nullcontext(),
}


@contextlib.contextmanager
def simulated_gpu(*, without=None):
    """Have a GPU inside of the block, perhaps ``without`` a dtype; yields the `SimulatedGPU`."""
    gpu = SimulatedGPU(without)
    _gpus.append(gpu)
    try:
        with patch.multiple(torch.cuda, **_PRESENT), _Functions(), _Dispatch(gpu):
            yield gpu
    finally:
        _gpus.pop()
