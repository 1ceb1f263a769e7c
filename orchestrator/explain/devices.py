"""How many devices a cell would need that does not fit on one."""


def devices_needed(peak_bytes: int, device_bytes: int, reserve_bytes: int, context_bytes: int) -> int | None:
    """The least number of equal devices that hold `peak_bytes` between them, if everything but the overhead divides.

    `peak_bytes`: predicted for one device, its context in it, the driver's reserve not. Each device has to bear both.
    None where they alone fill a device.
    """
    room = device_bytes - reserve_bytes - context_bytes
    return -(-(peak_bytes - context_bytes) // room) if room > 0 else None
