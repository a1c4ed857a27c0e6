"""Forces eight host devices, before jax is imported, so that pmap and mesh tests run anywhere."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
