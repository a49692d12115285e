//! What to do about trouble that stays, and how often.
//!
//! A trigger holds or does not. While it holds, the rungs of a ladder are taken one at a time, from mild to strong, with a
//! cool-down between them; at the last rung it stays. When the trigger no longer holds, what can be undone is undone and the
//! ladder begins anew. A remedy that does not help must not become a second trouble: actions are capped per hour, and the cap
//! outlives the episode.
//!
//! | state | trigger holds | trigger does not hold |
//! | --- | --- | --- |
//! | idle | first rung, if the cap allows | - |
//! | acting | next rung after the cool-down, if the cap allows | undo, idle |
//!
//! Verification of each rung comes with the full recovery loop.

use std::{
    collections::VecDeque,
    num::NonZeroU32,
    time::{Duration, Instant},
};

const HOUR: Duration = Duration::from_hours(1);

/// The bounds of a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoveryConfig {
    /// Rungs on the ladder.
    pub rungs: NonZeroU32,
    /// The time between two rungs.
    pub cooldown: Duration,
    /// Actions in any hour.
    pub max_per_hour: NonZeroU32,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a step that is not taken helps nobody"]
pub enum RecoveryStep {
    /// Take this rung, counted from 0.
    TakeRung(u32),
    /// The trigger holds and the next rung is due, but the hour's actions are used. Said once per hour's turn.
    Capped,
    /// The trouble is over: undo what can be undone, of the rungs below this number.
    Undo(u32),
}

/// One recovery.
#[derive(Debug)]
pub struct RecoveryLadder {
    config: RecoveryConfig,
    /// Rungs taken in this episode; 0 is idle.
    rungs_taken: u32,
    last_action: Option<Instant>,
    recent_actions: VecDeque<Instant>,
    is_cap_reported: bool,
}

impl RecoveryLadder {
    /// Makes an idle recovery.
    #[must_use]
    pub fn new(config: RecoveryConfig) -> Self {
        Self {
            config,
            rungs_taken: 0,
            last_action: None,
            recent_actions: VecDeque::new(),
            is_cap_reported: false,
        }
    }

    /// Looks at the trigger and says what is to be done now, if anything.
    pub fn update(&mut self, is_triggered: bool, now: Instant) -> Option<RecoveryStep> {
        if !is_triggered {
            let taken = std::mem::take(&mut self.rungs_taken);
            self.is_cap_reported = false;
            return (taken > 0).then_some(RecoveryStep::Undo(taken));
        }
        if self.rungs_taken > 0 && self.rungs_taken >= self.config.rungs.get() {
            return None;
        }
        if self
            .last_action
            .is_some_and(|last| now < last + self.config.cooldown)
        {
            return None;
        }
        while self
            .recent_actions
            .front()
            .is_some_and(|at| now >= *at + HOUR)
        {
            self.recent_actions.pop_front();
            self.is_cap_reported = false;
        }
        if self.recent_actions.len() >= self.config.max_per_hour.get() as usize {
            return (!std::mem::replace(&mut self.is_cap_reported, true))
                .then_some(RecoveryStep::Capped);
        }
        let rung = self.rungs_taken;
        self.rungs_taken += 1;
        self.last_action = Some(now);
        self.recent_actions.push_back(now);
        Some(RecoveryStep::TakeRung(rung))
    }

    /// Follows new bounds; what was done stays counted.
    pub fn reconfigure(&mut self, config: RecoveryConfig) {
        self.config = config;
    }

    /// Rungs taken in the present episode.
    #[must_use]
    pub fn rungs_taken(&self) -> u32 {
        self.rungs_taken
    }
}

#[cfg(test)]
mod tests;
