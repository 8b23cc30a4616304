"""The loop over epochs and steps."""

from __future__ import annotations

import signal
from collections.abc import Callable

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from datasets import Batch, BatchLoader
from losses.objective import Losses
from training.journal import Journal
from training.snapshots import Snapshots
from training.state import TrainingState
from training.validation import Validation
from utils import distributed
from utils.config import TrainSettings
from utils.iterators import each_within
from utils.signals import Stopped, StopRequest

Step = Callable[[Batch], Losses]


def train(state: TrainingState, loader: BatchLoader, step: Step, journal: Journal, snapshots: Snapshots,
          validation: Validation | None, stop: StopRequest, *, rate: Callable[[int], float],
          options: TrainSettings) -> None:
    """Train from where `state` stands to the end of the last epoch, with the learning rate `rate(epoch)`.

    `Stopped` where a signal came; the run is saved after the last step that was done.
    """
    position = state.progress
    try:
        with stop.deferred():
            if validation and not position.step:  # what all later scores are compared with, and whether it works
                validate(state, journal, validation, stop)
            while position.epoch <= options.NUM_EPOCHS:
                for group in state.optimiser.param_groups:
                    group["lr"] = rate(position.epoch)
                train_one_epoch(state, loader, step, journal, snapshots, stop, save_every=options.SAVE_EVERY_STEPS)
                end_epoch(state, journal, snapshots, validation, stop, options)
    except Stopped as stopped:
        journal.read()
        save(state, snapshots)
        raise Stopped(stopped.number, f"ended by {signal.Signals(stopped.number).name} after step {position.step}, "
                                      f"saved in {snapshots.last}; go on with --resume auto") from None


def train_one_epoch(state: TrainingState, loader: BatchLoader, step: Step, journal: Journal, snapshots: Snapshots,
                    stop: StopRequest, *, save_every: int) -> None:
    """Take the steps that are left of the epoch in progress; `Stopped` between two of them."""
    position, total = state.progress, len(loader)
    batches = each_within(journal.meter.waiting, loader.batches(position.epoch, position.batch))
    if distributed.world_size() == 1:  # several processes stop together, after a step that all of them have done
        batches = each_within(stop.at_once, batches)
    bar = tqdm(batches, total=total, initial=position.batch, unit="step", desc=f"epoch {position.epoch}",
               disable=None if distributed.rank() == 0 else True)
    with logging_redirect_tqdm(), bar:
        for batch in bar:
            losses = step(batch)
            position.step, position.batch = position.step + 1, position.batch + 1
            journal.note(losses, batch)
            bar.set_postfix(loss=f"{journal.last.total:.3f}", run_left=bar.format_interval(journal.time_left),
                            refresh=False)
            if position.batch < total:
                if journal.signalled:
                    raise Stopped(journal.signalled)
                if save_every and position.step % save_every == 0:
                    journal.read()
                    save(state, snapshots)


def end_epoch(state: TrainingState, journal: Journal, snapshots: Snapshots, validation: Validation | None,
              stop: StopRequest, options: TrainSettings) -> None:
    """Keep what the epoch has made, validate where its turn has come, and move on."""
    journal.read()
    position = state.progress
    if distributed.rank() == 0:
        snapshots.save_epoch(state.contents(), position.epoch, options.NUM_EPOCHS)
    if validation and (position.epoch % options.VALIDATE_EVERY == 0 or position.epoch == options.NUM_EPOCHS):
        save(state, snapshots)  # all batches done: a run that goes on from here validates first
        scores = validate(state, journal, validation, stop)
        if distributed.rank() == 0:
            snapshots.save_best(state.contents(), position.epoch, scores["val/J&F"], options.KEEP_BEST)
    position.epoch, position.batch = position.epoch + 1, 0
    save(state, snapshots)
    if journal.signalled:
        raise Stopped(journal.signalled)


def validate(state: TrainingState, journal: Journal, validation: Validation, stop: StopRequest) -> dict[str, float]:
    """Score the network as it is, and log it; `Stopped` meanwhile where a signal comes."""
    with stop.at_once():
        scores = validation()
    if distributed.rank() == 0:
        journal.log.log({"epoch": state.progress.trained_epoch, **scores}, state.progress.step)
    return scores


def save(state: TrainingState, snapshots: Snapshots) -> None:
    """Write the resumable checkpoint."""
    if distributed.rank() == 0:
        snapshots.save_last(state.resumable_contents())
