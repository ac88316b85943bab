"""What goes wrong for a user: the error itself, and the catalogue of its kinds. Imports nothing.

A code is a kind of mistake, not a place; the message says what, where and what to do. `afpkd explain CODE` shows an
entry, docs/reference.md lists all, with those that a device can have (`deploy.device_errors`).
"""

from __future__ import annotations

from typing import NamedTuple


class UserError(ValueError):
    """Something the user can mend. `code` is one of the catalogue; `message` is one line: what, where, what to do.

    It may quote a stranger's file or a device: what is not printable (line ends, escape sequences of a terminal) is
    written as an escape, and a long message loses its middle.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = _one_line(message)

    def __str__(self) -> str:
        return _one_line(f"{self.args[1]} [{self.code}]")


def _one_line(text: str) -> str:
    return printable(text if len(text) <= 1500 else f"{text[:750]} ... {text[-750:]}")


def printable(text: str) -> str:
    """The text with line ends and what else is not printable as escapes: shown, it moves no cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def install(extra: str) -> str:
    """The command, in this program's folder, that adds what an extra of pyproject.toml stands for."""
    return f".venv/bin/pip install --editable '.[{extra}]'"


class Entry(NamedTuple):
    """A kind of error: one line each of what happened and of what to do about it."""

    cause: str
    mend: str


CATALOGUE: dict[str, Entry] = {
    # What was asked for
    "E_USAGE": Entry(
        "the arguments do not go together, or one has a form that cannot be read",
        "compare with `--help` of the verb: the line says which argument, and what was expected",
    ),
    "E_UNKNOWN_NAME": Entry(
        "nothing of this kind has this name",
        "take the name that the line suggests, or one of those it lists",
    ),
    "E_FILE": Entry(
        "the operating system refuses a file or a folder: missing, not permitted, read-only, or of the other kind",
        "check the path in the line, its owner and its permissions (`ls -ld`), or name another place",
    ),
    "E_OUT": Entry(
        "the place that was named for a result holds something else, which would be lost",
        "name another folder, or move away what lies there",
    ),
    "E_DISK": Entry(
        "a disk is full, here or on the device that the line names",
        "make room and give the same command again: what was finished stays, and training continues",
    ),
    "E_MEMORY": Entry(
        "the memory of the GPU, or of this machine, ran out",
        "end what else uses it, set AFPKD_CUDA_GRAPH=0 (a recorded step keeps its memory), or lower the `batch_size`",
    ),
    "E_PACKAGE": Entry(
        "a Python package is missing, or it failed",
        "install what the line names; `afpkd doctor` looks at all packages, and `make clean setup` installs anew",
    ),
    "E_PYTHON": Entry(
        "the Python there is missing or too old: 3.11 or newer is needed here, 3.8 or newer on a device",
        "here: `make setup PYTHON=python3.12`; on a device: set its `python` in devices.toml",
    ),
    "E_SETUP": Entry(
        "`.venv` could not be made: pip's own words stand above",
        "see to a network (or a mirror: `PIP_INDEX_URL`), several GB of room, on Debian `python3-venv`; set up again",
    ),
    "E_NO_GIT": Entry(
        "what needs the history (`make dist`) was called in a folder that is no git checkout",
        "clone the repository, and call it there: an unpacked archive has no history",
    ),
    # Recipes
    "E_RECIPE_NAME": Entry(
        "no recipe has this name, or two would share one and so the folder of their runs",
        "take a name that `afpkd recipes` lists, or give the path of a TOML file with a name of its own",
    ),
    "E_RECIPE_KEY": Entry(
        "a recipe, or the SPEC.toml of a foreign model, has a key that does not exist or lacks one that is needed",
        "mend the key that the line names; docs/reference.md lists every key",
    ),
    "E_RECIPE_VALUE": Entry(
        "a value in a recipe is of the wrong type, out of range, or does not go with another one",
        "mend the value that the line names; docs/reference.md lists types, units and defaults",
    ),
    "E_RECIPE_PATH": Entry(
        "a file or folder that the recipe names is not there",
        "put it where the line looked, set AFPKD_DATA to the folder that holds it, or mend the path in the recipe",
    ),
    "E_TOML": Entry(
        "a TOML file is missing or cannot be read as TOML",
        "check the path, then the line and column that are named: text needs quotes, tables need [brackets]",
    ),
    # Data
    "E_DATA_MISSING": Entry(
        "a data set is not where it is looked for, and could not be downloaded",
        "set AFPKD_DATA to the folder that holds it, or unpack it where the line says; `afpkd doctor` lists all places",
    ),
    "E_DATA_BROKEN": Entry(
        "a data set is there, but its files are cut short, changed or incomplete",
        "delete the file or folder that the line names, then download or unpack it anew",
    ),
    "E_DATA_FOLDER": Entry(
        "a folder of images is not laid out as one folder per class, with images in each",
        "arrange it as docs/own-images.md shows",
    ),
    "E_DATA_CLASSES": Entry(
        "two parts that must know the same classes do not: training and test images, or data and network",
        "give both the same classes, with the same names",
    ),
    "E_DATA_COCO": Entry(
        "an annotation file is no COCO file, or breaks COCO's format at the entry that the line names",
        "mend that entry, or export the annotations anew; docs/own-coco.md shows what is read",
    ),
    "E_DATA_IMAGE": Entry(
        "an image cannot be read, or is not what its annotation says",
        "mend or delete the file that the line names, or take it out of the annotations",
    ),
    "E_DATA_LITTLE": Entry(
        "there are fewer images than what was asked of them",
        "add images, or ask for less: batch_size, data.heldout, or int8 (export.precisions)",
    ),
    "E_DATA_CHANGED": Entry(
        "files of a data set changed while they were read",
        "start again when nobody writes there any more",
    ),
    # Networks and their weights
    "E_NETWORK_NAME": Entry(
        "no network has this name, here or in the library that was named",
        "take the name that the line suggests; others are timm:NAME, torchvision:NAME and FILE.py:FUNCTION",
    ),
    "E_NETWORK_FILE": Entry(
        "your FILE.py:FUNCTION is not there, fails, or returns no torch.nn.Module",
        "mend the function that the line names; docs/own-network.md shows one",
    ),
    "E_NETWORK_FIT": Entry(
        "a network does not fit what is asked of it: image size, classes, feature maps, stages",
        "mend what the line names, in the recipe or in the network",
    ),
    "E_METHOD_FIT": Entry(
        "the distillation method needs something that this pair of networks does not have",
        "take the method that the line names, or other networks",
    ),
    "E_WEIGHTS_MISSING": Entry(
        "the file of weights is not there",
        "check the path, or put the file where the line looked",
    ),
    "E_WEIGHTS_FILE": Entry(
        "the file holds no weights that can be loaded safely: no plain tensors, or under other names",
        "save a state dict (`torch.save(model.state_dict(), ...)`), or name the key and prefix inside it",
    ),
    "E_WEIGHTS_MISMATCH": Entry(
        "the weights are those of another network: names or shapes differ",
        "name the network that they were trained with, or other weights; weights are loaded whole or not at all",
    ),
    "E_WEIGHTS_NAN": Entry(
        "weights, or the answers that come of them, are NaN or infinite",
        "take another file, or train again with a smaller learning rate",
    ),
    "E_WEIGHTS_PUBLISHED": Entry(
        "published weights do not exist under this name, or cannot be fetched: is this machine offline?",
        'connect once, name a file that you have, or start without them (weights = "none")',
    ),
    # Training
    "E_TRAIN_DEVICE": Entry(
        "training was asked for on a GPU, and torch finds none",
        "use TRAIN_DEVICE=cpu or auto; `afpkd doctor` looks at GPU and driver",
    ),
    "E_TRAIN_GRAPH": Entry(
        "a training's step cannot be recorded as a CUDA graph: something in it waits for the GPU",
        "set AFPKD_CUDA_GRAPH=0: its kernels are then launched one by one",
    ),
    "E_TRAIN_PROCESSES": Entry(
        "TRAIN_PROCESSES does not fit the recipe's batches or the GPUs of this machine",
        "use one of the numbers that the line names",
    ),
    "E_TRAIN_STATE": Entry(
        "the checkpoint that a training left cannot be read",
        "delete the file that the line names: the stage is then trained anew",
    ),
    "E_TRAIN_STOPPED": Entry(
        "one of several training processes was ended or failed",
        "give the command again, it continues from the last checkpoint; if memory ran out, use fewer processes",
    ),
    "E_TRAIN_DIVERGED": Entry(
        "a loss became NaN or infinite while training",
        "lower `lr`, or the weight of the term that the line shows as the largest",
    ),
    "E_TRAIN_LOSS": Entry(
        "a loss that is switched on teaches nothing: it is zero, or sends no gradient to the student",
        "switch it off, or take a method that fits these networks",
    ),
    "E_TEACHER": Entry(
        "the teacher is less accurate than its recipe demands",
        "train it longer, check its weights and the data, or lower the bound that the line names",
    ),
    "E_PROMPTS": Entry(
        "the trained prompts choose no pixels: their masks are no better than constant or shuffled ones",
        "in [prompts] raise epochs or area or lower lr: wide teachers and few photos want it; or must_choose = false",
    ),
    # Runs and their records
    "E_RUN_MISSING": Entry(
        "there is no such run, or the stage that makes what is needed has not run yet",
        "run that stage first (`make distill export profile`), or name another folder of runs",
    ),
    "E_RUNS_BUSY": Entry(
        "another run works in this folder of runs",
        "wait for it, end it, or use another folder (RUNS=...)",
    ),
    "E_RUN_STOPPED": Entry(
        "the run ended before a stage could say why",
        "read the log that the line names; `afpkd doctor` looks at disk and memory",
    ),
    "E_RUN_CHANGED": Entry(
        "a file of a run is not the one that its record speaks of: changed, or made of something else",
        "run its stage again; `afpkd verify RUN` names everything that changed",
    ),
    "E_RECORD": Entry(
        "a record cannot be read, or is not of the kind that is needed here",
        "name another file, or delete it and run its stage again",
    ),
    "E_COMPARE": Entry(
        "two runs have no measured file in common",
        "measure the same role, precision and device in both",
    ),
    "E_EVALUATE": Entry(
        "what was named cannot be scored as it is",
        "name a role's folder or a bundle, or give a weights file its --arch, --data and --recipe",
    ),
    "E_CLUSTER": Entry(
        "the cluster is unknown, or Snakemake's executor for it is not installed",
        "use CLUSTER=slurm, kubernetes or a folder with a config.yaml, after `make setup-cluster`; see docs/cluster.md",
    ),
    "E_BENCH": Entry(
        "a bench could not make the measurement that it is for",
        "mend what the line quotes, then run the bench again",
    ),
    # Export, ONNX files, bundles
    "E_EXPORT_TORCH": Entry(
        "torch cannot write this network as an ONNX file that keeps its inputs and outputs",
        "mend the network's forward: no branches on values, no fixed batch size",
    ),
    "E_EXPORT_SETTING": Entry(
        "a setting of [export] cannot be met",
        "change the key that the line names",
    ),
    "E_EXPORT_DIFFERS": Entry(
        "an exported file computes something else than torch does, so it was not written",
        "leave that precision out of export.precisions, or name sensitive layers in export.int8_exclude",
    ),
    "E_ONNX_FILE": Entry(
        "the file is missing, or is no valid ONNX file",
        "check the path, or export the model again",
    ),
    "E_ONNX_FIT": Entry(
        "the ONNX file is valid, but its inputs, outputs or operators are not what is needed here",
        "say what is open with the option that the line names, or export the model again",
    ),
    "E_LOAD": Entry(
        "ONNX Runtime cannot load or run this file",
        "export it again, or install another version of onnxruntime",
    ),
    "E_OLD": Entry(
        "this TensorRT is too old: 8.5 (JetPack 5.1) is the oldest that will do",
        "update JetPack or TensorRT, or use the runtime onnxruntime",
    ),
    "E_BUNDLE": Entry(
        "a bundle is incomplete, malformed, or has no file for this runtime and precision",
        "export it again; the recipe's [export] says which precisions it holds",
    ),
    "E_BUNDLE_UNTRUSTED": Entry(
        "a bundle holds what no bundle of ours holds: links, paths that leave it, arrays that are not as declared",
        "do not use it: ask whoever sent it, or export your own",
    ),
    "E_HASH": Entry(
        "a bundle's files are not those of its manifest: changed, missing or added since the export",
        "export it again, or send it to the device again",
    ),
}
"""Code -> entry, of all that can go wrong on this machine."""
