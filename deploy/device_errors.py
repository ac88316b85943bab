"""The catalogue of what can go wrong with a device: on the way to it, and on it; beside `afpkd.errors.CATALOGUE`.

The agent's own errors (deploy/agent, which imports nothing of ours) keep their codes when the host passes them on.
"""

from __future__ import annotations

from afpkd.errors import Entry

DEVICE_CATALOGUE: dict[str, Entry] = {
    # Which device, and the way to it
    "E_DEVICE_NAME": Entry(
        "no device has this name, or none can have it",
        "take a name of devices.toml, `local` or `local-gpu`; `afpkd devices list` shows them",
    ),
    "E_DEVICES_FILE": Entry(
        "devices.toml is not there, or a table or key in it is wrong",
        "mend the key that the line names; docs/jetson.md lists every key",
    ),
    "E_LOCAL": Entry(
        "what was asked for needs another machine than this one",
        "name a device of devices.toml",
    ),
    "E_NO_SSH": Entry(
        "OpenSSH's client is missing on this machine",
        "install openssh-client",
    ),
    "E_CONFIG": Entry(
        "ssh refuses its own configuration",
        "mend the line of ~/.ssh/config (or of the device's ssh_config) that ssh names",
    ),
    "E_UNREACHABLE": Entry(
        "the device does not answer: wrong address, switched off, or no sshd there",
        "try `ssh` with the same host yourself, then mend `host` in devices.toml",
    ),
    "E_AUTH": Entry(
        "the device refuses this user's key",
        "bring your key there with `ssh-copy-id`; passwords are never used",
    ),
    "E_HOSTKEY": Entry(
        "the device's host key is unknown, was not accepted, or has changed",
        "compare it on the device itself, then `afpkd devices trust NAME`",
    ),
    "E_DROPPED": Entry(
        "the line to the device ended, or something did not arrive whole",
        "give the same command again: a job goes on there meanwhile, and is found again",
    ),
    "E_ANSWER": Entry(
        "the device's answer is none of this program's agent",
        "look at what a login prints there, and whether its clock and disk are in order",
    ),
    # The agent on the device
    "E_WORKDIR": Entry(
        "the agent cannot write in its work folder on the device",
        "name another `workdir` for the device in devices.toml",
    ),
    "E_CORRUPT": Entry(
        "a file arrived on the device with other bytes than were sent",
        "give the same command again; where it comes back, look at the line and at the device's disk",
    ),
    "E_NAME": Entry(
        "the agent was asked for a file outside its work folder",
        "report it as a fault of this program, unless the request was your own",
    ),
    "E_NUMPY": Entry(
        "the device's Python has no usable numpy",
        "install it there (`sudo apt-get install python3-numpy`), or set the device's `python`",
    ),
    "E_PROTOCOL": Entry(
        "host and agent speak different versions",
        "carry a new agent there (`afpkd devices agent FILE`), or update this program",
    ),
    "E_VERB": Entry(
        "the agent has no such verb",
        "take one of those that the line lists",
    ),
    "E_REQUEST": Entry(
        "the agent cannot read what it was asked",
        "use the host and the agent of one version; with a request of your own, mend what the line names",
    ),
    "E_UNEXPECTED": Entry(
        "the agent failed in a way that nobody foresaw",
        "report it with the line: it names the place in the agent's code",
    ),
    "E_CRASH": Entry(
        "a process on the device died without an answer",
        "read its last words in the line; where the runtime died, try another version of it",
    ),
    # Jobs there
    "E_BUSY": Entry(
        "somebody else's job has the device",
        "wait for the job that the line names, or ask its owner to end it",
    ),
    "E_JOB": Entry(
        "the device knows no job of this name",
        "submit it again",
    ),
    "E_LOST": Entry(
        "the job ended without a result: the device was rebooted, or the agent was killed",
        "run it again; where it comes back, look at the device's memory and power supply",
    ),
    "E_CANCELLED": Entry(
        "the job was cancelled, or whoever asked for it is gone",
        "run it again if the result is still wanted",
    ),
    "E_TIMEOUT": Entry(
        "the job took longer than the device allows",
        "take a shorter `profile.preset`, fewer `profile.scenarios`, or raise a board's `max_seconds` in devices.toml",
    ),
    "E_OOM": Entry(
        "the job was killed on the device, most likely for memory",
        "close programs there, add swap, or take a smaller batch",
    ),
    "E_BLOB": Entry(
        "a file of the job is not on the device",
        "give the same command again: what is missing is sent",
    ),
    # What computes there
    "E_RUNTIME": Entry(
        "no runtime has this name",
        "set the device's `runtime` in devices.toml to auto, tensorrt or onnxruntime",
    ),
    "E_NO_RUNTIME": Entry(
        "the device has no runtime that can run the file",
        "install what the line names; `afpkd devices probe NAME` says what is there",
    ),
    "E_OPTION": Entry(
        "the runtime does not have an option that the device or the request sets, or not with this value",
        "mend the option in devices.toml, or take another precision",
    ),
    "E_NO_CUDA": Entry(
        "no CUDA library can be loaded on the device",
        "install CUDA's runtime (JetPack brings it), or what the line names",
    ),
    "E_NO_DRIVER": Entry(
        "no NVIDIA driver is loaded that is new enough for this CUDA",
        "install or update the driver (on a Jetson: flash JetPack)",
    ),
    "E_NO_DEVICE": Entry(
        "there is an NVIDIA driver, and no GPU",
        "see whether `nvidia-smi` shows one, and pass it into the container",
    ),
    "E_CUDA": Entry(
        "a call to CUDA failed",
        "look the number up in CUDA's documentation; restart the device where it persists",
    ),
    "E_OUT_OF_MEMORY": Entry(
        "the memory of the GPU or of the device is full",
        "end other programs there, take a smaller batch, or set a smaller `workspace_mb` in devices.toml",
    ),
    "E_TENSORRT": Entry(
        "TensorRT refuses to start: no builder, network or runtime could be made",
        "see whether a GPU and its driver are there (`nvidia-smi`, on a Jetson `tegrastats`)",
    ),
    "E_PARSE": Entry(
        "TensorRT's parser refuses the ONNX file",
        "export for this release (export.legacy for 8.x); `afpkd devices probe NAME` says which it is",
    ),
    "E_BUILD": Entry(
        "TensorRT could not build an engine of the file",
        "read TensorRT's first error in the line; try another precision, or leave `workspace_mb` out of devices.toml",
    ),
    "E_ENGINE": Entry(
        "an engine does not open on this device, or is of another network",
        "run it again: a stale engine is built anew; where it persists, `afpkd devices gc NAME --all`",
    ),
    "E_CACHE": Entry(
        "built engines cannot be kept on the device",
        "make the folder that the line names writable, or name another: `workdir` of a board, XDG_CACHE_HOME elsewhere",
    ),
    "E_SHAPE": Entry(
        "images or inputs have another shape than the file or the engine takes",
        "export with a dynamic batch, or give it what the line expects",
    ),
    "E_EXECUTE": Entry(
        "TensorRT failed while it computed",
        "read its own words in the line; run it again, then try another precision",
    ),
    "E_GOLDEN": Entry(
        "the file computes something else on the device than it did in torch",
        "deploy another precision; the release that was there before stays",
    ),
    "E_SUDO": Entry(
        "clocks were to be locked or put back, and sudo refuses it",
        'allow jetson_clocks and nvpmodel in sudoers (docs/jetson.md), or set the device\'s clocks = "as-is"',
    ),
    "E_CLOCKS": Entry(
        "clocks were to be locked or put back, and jetson_clocks fails on the device",
        'read its last words in the line and try it there, or set the device\'s clocks = "as-is" in devices.toml',
    ),
    "E_POWER_MODE": Entry(
        "a power mode was to be set or put back, and the board does not take it over without a reboot",
        "give the command of the line on the board and let it reboot; `afpkd devices restore NAME` looks again",
    ),
    # Measuring
    "E_MEASURE": Entry(
        "a setting of the measurement cannot be met on this device",
        "mend what the line names: threads or preset in the recipe or option, clocks or max_seconds in devices.toml",
    ),
    "E_MEASURE_INPUT": Entry(
        "the inputs that were named for measuring do not fit those of the file",
        "give what the line names with --shape or --inputs",
    ),
    "E_BOARD_RECORD": Entry(
        "a record that a board made by itself is incomplete, or does not belong to this run",
        "bring .json and .npz of one measurement, made on a bundle of this run; docs/jetson.md shows how",
    ),
    # Releases
    "E_BUDGET": Entry(
        "the file lost more accuracy in its precision than the recipe allows",
        "deploy another precision, or raise export.max_drop",
    ),
    "E_RELEASE": Entry(
        "nothing is deployed there, or there is no release to go back to",
        "deploy first: `make deploy DEVICE=NAME`",
    ),
    "E_IMAGE": Entry(
        "an image for `predict` is missing, or is none that can be read",
        "check the path; JPEG and PNG need Pillow or OpenCV there, .npy needs neither",
    ),
    "E_NO_DECODER": Entry(
        "the device has nothing that decodes images",
        "install Pillow or OpenCV there (`sudo apt-get install python3-pil`), or give .npy files",
    ),
}
"""Code -> entry, of all that can go wrong with a device."""
