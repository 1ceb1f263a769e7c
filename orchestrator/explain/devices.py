"""How many devices a cell would need that does not fit on one."""


def devices_needed(peak_bytes: int, device_bytes: int, overhead_bytes: int) -> int | None:
    """The least number of equal devices that hold `peak_bytes` between them, if everything but the overhead divides.

    `peak_bytes`: predicted for one device. `overhead_bytes`: of the driver and of a context, which each device has to
    bear. None where the overhead alone fills a device.
    """
    room = device_bytes - overhead_bytes
    return -(-(peak_bytes - overhead_bytes) // room) if room > 0 else None
