"""Every key of the records that a run leaves, with its meaning: docs/reference.md is made from this.

A dotted key lies in the table before the dot. A meaning that begins with "Where" or "Of a detector": other records have
no such key. Tests hold records that were really made to these tables.
"""

from __future__ import annotations

_MADE = {
    "recipe": "Name of the recipe.",
    "config_digest": "sha256 of the settings that the stage depends on: it runs again where this changes.",
    "inputs": "sha256 of what it was made of, by name.",
    "outputs": "sha256 of the files beside it, by name.",
    "versions": "Of Python, this program and the packages that count.",
    "git_commit": "Of this program; `+`: changed since, `?`: from an archive, nobody can tell; null: not known.",
    "machine": "`system`, `processor`, `num_cpus`, the `gpu` that trained; of a profile the device's, with its "
    "`board` (L4T, JetPack, CUDA) and what it said `before` and `after`.",
    "finished_at": "UTC.",
}
_STAGE = {
    "data": "Data set.",
    "folder": "Where the images are the user's own: the recipe's [data].",
    "data_notes": "Where something about the images is worth saying: lines.",
    "preprocessing": "`mean` and `std` of each channel of pixel / 255.",
    "seed": "The recipe's.",
    **_MADE,
    "device": "`cpu`, or a CUDA device.",
    "threads": "Of the CPU; 0: torch's own number.",
    "processes": "That shared each batch.",
    "wall_s": "Seconds it took, all of its attempts together.",
    "cpu_s": "Where it was trained here: seconds of CPU time of the first process.",
    "precision": "Where it was trained here: what the networks computed in, `float32`, `bfloat16` or `float16`.",
    "shared_from": "Where another recipe of the same graph made it: that recipe's name.",
}
NETWORK = {
    "schema": "`afpkd.checkpoint/1`.",
    "role": "`teacher`, `student` or `undistilled`.",
    "task": "`classification` or `detection`.",
    "arch": "Name of the network.",
    "network": "Where the name alone does not make it again: `arch`, `stages` and `own` (its own mean and std).",
    "method": "Of the distillation; `none`: trained without a teacher; null: not trained here.",
    "num_params": "Trainable parameters in torch; of a file: `afpkd cost`.",
    "num_classes": "Outputs.",
    "in_channels": "Of an image.",
    "image_size": "[height, width].",
    "metrics.test_top1_last": "Test accuracy in percent of the last epoch; of a detector `test_ap_last` and so on.",
    "metrics.test_top1_selected": "The same of the selected epoch, whose weights travel on.",
    "metrics.heldout_top1": "Held-out accuracy by which that epoch was selected; of a detector `heldout_ap`.",
    "selected_epoch": "From 1; null: not trained here.",
    "epochs": "Epochs that were trained.",
    **_STAGE,
}
PROMPTS = {
    "schema": "`afpkd.prompts/1`.",
    "metrics.teacher_heldout_top1": "Of the teacher; of a detector `teacher_heldout_ap`.",
    "metrics.prompted_heldout_top1": "Of the teacher under its masks; of a detector `prompted_heldout_ap`.",
    "metrics.median_mask_spread": "Median over the bands of their masks' spread.",
    "metrics.accepted": "Whether the masks choose anything (`prompts.must_choose`).",
    "metrics.own": "Under the prompts' masks: `kl` in nats to the clean teacher (a detector's: how it changed), "
    "`agreement` with it in percent.",
    "metrics.banded": "The same with each band's mean at all its pixels.",
    "metrics.shuffled": "The same with the masks' values at random bands and pixels.",
    "metrics.constant": "The same with the level's mean everywhere.",
    "metrics.overlap": "Of the tokens' masks, 0 to 1: mean pairwise soft Jaccard.",
    "metrics.omega_std": "Standard deviation of the position weight over the channels, one number per level.",
    "metrics.masks": "One per band: `level`, `band`, `mean` and `spread` (over the pixels) of its mask.",
    **_STAGE,
}
EPOCH = {
    "epoch": "From 1.",
    "step": "Steps so far.",
    "lr": "Learning rate of its last step.",
    "losses": "Mean of each loss over its steps, by name.",
    "gradient_norms": "Norm of each loss's gradient at its last batch, by name.",
    "heldout_top1": "In percent; of a detector `heldout_ap`, of the prompts that of the prompted teacher.",
    "images_per_s": "Of its training.",
    "wall_s": "Seconds since the stage began.",
}
PROFILE = {
    "schema": "`afpkd.profile/1`.",
    "device": "Name in devices.toml, `local` or `local-gpu`.",
    "role": "Whose file; null: no role's (`afpkd measure`).",
    "arch": "Name of the network; null as before.",
    "model": "Where an ONNX file alone was measured: its name.",
    "precision": "`fp32`, `fp16` or `int8`.",
    "mode": "Of the runtime; int8 of ONNX Runtime is measured in `default` and `precise`.",
    "threads": "Really used; null: cannot be known.",
    "clocks": "As they were: `as-is`, `locked` or a power mode.",
    "power_mode": "Of a Jetson, else null.",
    "device_digest": "sha256 of the device's entry in devices.toml, as far as a number depends on it; none: empty.",
    "macs": "Convolutions and linear layers, FLOPs/2.",
    "num_params": "Of the network in torch; of an ONNX file alone those of the file.",
    "size_bytes": "Of the file.",
    "top1": "On the device, in percent; null: not looked at.",
    "ap": "Of a detector, on the device, in percent; beside it `ap50`, `ap75`, `ap_small`, `ap_medium`, `ap_large`.",
    "scenario": "`single_stream`, `periodic` or `offline`.",
    "batch": "Images per call.",
    "n": "Samples, over all processes.",
    "latency_ms": "`min`, `mean`, `max`; `p50`, `p90`, `p95`, `p99`, each with its 95 % interval (`_lo`, `_hi`) and "
    "MLPerf's 99 % bound (`_bound`); null: too few samples.",
    "throughput_ips": "Images per second.",
    "quantities_ms": "`h2d`, `gpu`, `d2h`, `enqueue`, `pre`, `post`: parts of a call; null: not such a part.",
    "energy": "Net joules per inference with rails, rate and blind spots; null: no sensor.",
    "num_runs": "Fresh processes.",
    "spread_percent": "Between the processes' medians; null: one process.",
    "fps": "Frames per second that were asked for (periodic).",
    "missed_percent": "Frames later than when the next one is due (periodic).",
    "sustainable_fps": "The highest rate that was kept up (periodic).",
    "verdict": "`VALID`, `WARN` or `INVALID`.",
    "reasons": "Lines.",
    "rows": "One per scenario, batch and mode, with the keys above but for `schema`, `arch` and `model`; the record "
    "itself repeats the first.",
    "left_out": "Where a sweep had to leave power modes out: a line for each, with the reason.",
    "top1_interval": "95 %, in percent: of another test set of this size.",
    "preset": "`quick`, `standard` or `mlperf`.",
    "peak_memory_bytes": "Of the whole process.",
    "memory": "That, what it was before the file was loaded, who told it, and what it includes.",
    "runtime": "`name`, `version`, `providers`, `threads`, `threads_asked` (0: its own number), its options.",
    "protocol": "The rules in words and numbers: rows of different rules are never drawn in one series.",
    "timing": "Of the first process: loading, warm-up, drift, wandering, dependence, foreign load, the sampler's cost.",
    "golden": "`before` and `after`: was the output right? With the tolerances.",
    "clock": "The device's clock against the host's: `offset_s`, to within `within_s`; null: no host beside it.",
    "cross_check": "What trtexec says of the same engine; null: there is none.",
    "runs": "Each process alone: `n`, `latency_ms`, loading, first inference, and what `timing` says of the first.",
    "modes": "Each mode's golden check.",
    **_MADE,
}
RECORDS = {
    "runs/RECIPE/ROLE/record.json": NETWORK,
    "runs/RECIPE/prompts/record.json": PROMPTS,
    "a line of metrics.jsonl": EPOCH,
    "runs/RECIPE/profiles/DEVICE/ROLE-PRECISION.json": PROFILE,
}
