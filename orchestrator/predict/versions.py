"""A prediction is of the libraries that it is made with: what a device runs others with may differ by some per cent."""

from workers.attempt import Device
from workers.libraries import library_versions


def other_libraries(device: Device) -> str | None:
    """In words, where cells on the device run with other versions than this process predicts with."""
    here = library_versions()
    if device.libraries is None or device.libraries == here:
        return None
    return f"cells run with {device.libraries}, predictions are of {here}"
