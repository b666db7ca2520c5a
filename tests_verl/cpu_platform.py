"""A CPU platform for verl, through verl's own registry: verl 0.9.1 ships CUDA, NPU and ROCm only.

verl imports this file in each of its processes when VERL_USE_EXTERNAL_MODULES=cpu_platform (see conftest.py). Engines,
workers and trainer stay verl's; VERL_ENGINE_DEVICE=cuda picks the engine classes that verl registers for CUDA.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import torch
from transformers import AutoModelForTokenClassification
from verl.plugin.platform import PlatformBase, PlatformRegistry


def _nothing(*args, **kwargs):
    return None


def _zero(*args, **kwargs):
    return 0


CPU = SimpleNamespace(
    **{name: getattr(torch.cpu, name) for name in dir(torch.cpu) if not name.startswith("_")}
    | dict.fromkeys(
        ("empty_cache", "reset_peak_memory_stats", "manual_seed", "manual_seed_all", "ipc_collect"), _nothing
    )
    | dict.fromkeys(("max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved"), _zero)
    | {"mem_get_info": lambda *args: (0, 0), "get_device_name": lambda *args: "CPU"}
)


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """One CPU that passes for verl's device: gloo for communication, no memory statistics, no profiler, no IPC.

    Ray is asked for its resource "GPU", which is what `ray.init(num_gpus=...)` hands out in the tests.
    """

    device_name = vendor_name = "cpu"
    device_module = CPU

    def is_available(self):
        return True

    def is_platform_available(self, use_smi_check=False):
        return True

    def current_device(self):
        return torch.device("cpu")

    def device_count(self):
        return 1

    def communication_backend_name(self):
        return "gloo"

    def visible_devices_envvar(self):
        return "CPU_VISIBLE_DEVICES"

    def get_device_capability(self, device_index=0):
        return None, None

    @contextmanager
    def nvtx_range(self, msg):
        yield

    def ray_resource_name(self):
        return "GPU"  # ray.init(num_gpus=...) makes up as many as are wanted

    def ray_noset_envvars(self):
        return []

    def ray_resource_options(self, num_gpus):
        return {"num_gpus": num_gpus}

    def is_ipc_supported(self):
        return False

    def cudart(self):
        return None

    def get_device_uuid(self, device_id):
        return "cpu"

    set_device = synchronize = manual_seed = manual_seed_all = _nothing
    set_allocator_settings = empty_cache = profiler_start = profiler_stop = _nothing


# Two places of verl that name a CUDA-only choice instead of asking the platform:
# the critic's flash attention (verl/utils/model.py, load_valuehead_model) ...
_from_pretrained = AutoModelForTokenClassification.from_pretrained


def _with_sdpa(*args, **kwargs):
    return _from_pretrained(*args, **kwargs | {"attn_implementation": "sdpa"})


AutoModelForTokenClassification.from_pretrained = _with_sdpa

# ... and a process group with one backend for the CPU and one for "the device" (verl/utils/distributed.py).
_init_process_group = torch.distributed.init_process_group


def _init_gloo_once(backend=None, *args, **kwargs):
    return _init_process_group("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)


torch.distributed.init_process_group = _init_gloo_once
