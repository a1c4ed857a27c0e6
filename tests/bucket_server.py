"""A server of Google Cloud Storage's protocol: `python bucket_server.py PORT`, with an empty bucket `runs` in memory.

`gcp-storage-emulator`, and the one header of a download that TensorStore needs beside what that sends.
"""

import sys

from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.storage import NotFound

_download = objects.download


def download(request, response, storage, *args, **kwargs):
    """As the emulator has it, with the object's generation."""
    try:
        found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
        response["x-goog-generation"] = found["generation"]
    except NotFound:
        pass  # which the download answers
    return _download(request, response, storage, *args, **kwargs)


if __name__ == "__main__":
    objects.download = download
    from gcp_storage_emulator.server import create_server  # reads its handlers when it is imported

    create_server("localhost", int(sys.argv[1]), True, "runs").run()
