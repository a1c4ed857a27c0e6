"""Eight host devices for every test, so that pmap and meshes run on a machine with one CPU. Set before jax starts."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
