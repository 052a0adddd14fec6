//! The faults that can be planted, and the switch of this thread.

use std::cell::Cell;

thread_local! {
    static PLANTED: Cell<Option<Planted>> = const { Cell::new(None) };
}

macro_rules! planted_faults {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A rule of the protocol that is broken on purpose.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Planted {
            $($(#[$doc])* $name,)*
        }

        impl Planted {
            /// All of them.
            pub(crate) const ALL: &[Self] = &[$(Self::$name,)*];

            /// The one of this name.
            pub(crate) fn named(name: &str) -> Option<Self> {
                match name {
                    $(stringify!($name) => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

planted_faults! {
    // In the journal, the scribe and the driver.
    /// A record that is there already does not stop a coordinator.
    NoFence,
    /// A journal that cannot be written does not stop one.
    LostJournalIgnored,
    /// The metrics are written without a look whether somebody else is in office.
    NoOfficeCheck,
    /// A decision is announced while its record is on its way.
    AnnouncedBeforeRecorded,
    /// A coordinator that has nothing to write never learns that it was replaced.
    NeverLooked,
    /// A coordinator starts counting terms anew.
    TermForgotten,
    /// Manifests that count are deleted with those that do not.
    CountedManifestsDeleted,
    /// Manifests that seem not to count are deleted without a look whether somebody else is in
    /// office.
    VoidDeletedBlindly,
    // In the machine.
    /// A lane is dealt to two members.
    LaneDealtTwice,
    /// Generations are counted anew by each coordinator.
    GenerationReused,
    /// A worker of a generation that is over may come back.
    StaleWorkerAdmitted,
    /// A newcomer takes the place of a lost member of its name.
    NamesakeInPlace,
    /// A run waits for more workers though some have finished.
    HeldAtTheEnd,
    /// A run that waits for more workers keeps those that would leave.
    HeldAgainstItsWill,
    /// A checkpoint counts before its manifest is there.
    CommitBeforeManifest,
    /// A checkpoint counts before the news of its steps is there.
    CommitBeforeNews,
    /// A commit is answered before it is on record.
    AnsweredBeforeRecorded,
    /// A checkpoint that is the latest may be let go.
    LatestReleased,
    /// A run whose members differ goes on without the odd one, with what that has computed.
    NotTakenBack,
    /// A run whose members differ goes back to its latest checkpoint, right or not.
    BackToLatest,
    /// Steps that are told again are measured again.
    MeasuredTwice,
    /// Members that come after the first ones begin where these began.
    OldBeginning,
    /// A member that is forgotten while the run waits keeps its stream, and waits too.
    ForgottenInSilence,
    /// A coordinator that is cut off takes its members for lost.
    BlamedWhenCutOff,
    /// A member that is lost stays in the generation.
    LostMemberKept,
    /// A member that comes back is not told its generation.
    NotAnnouncedAgain,
    // In the workers, as the simulator has them.
    /// A worker that waits begins where the first coordinator said that it met.
    FirstWelcomeKept,
    /// A newcomer does not take the weights of the others.
    NothingHandedOver,
    /// A newcomer gets a copy that was not compared with the others' before.
    HandedOverUncompared,
    /// Members do not look at what a comparison of their copies says.
    DifferencesIgnored,
    /// A checkpoint is said to be right before the copies are compared.
    SavedUncompared,
    /// A worker votes before it holds the gradient.
    VoteBeforeHeld,
    /// A worker that missed the vote does the step again.
    StepsDoneAgain,
    /// Lanes that are in the sum are computed again in the next generation.
    LanesSummedAgain,
    /// A worker that is asked to stop does not ask the others.
    StopAlone,
    /// A checkpoint is committed before its parts are stored.
    CommitBeforeUpload,
    /// A stage ends before its checkpoint counts.
    BorderBeforeSaved,
    /// A new rank 0 does not tell the latest steps again.
    NewsNotRepeated,
    /// A new coordinator is not told the latest steps again.
    StepsToldOnce,
    /// A new coordinator is not told that a worker was asked to leave.
    LeavingToldOnce,
}

/// Whether it is planted in this thread.
pub(crate) fn is(fault: Planted) -> bool {
    PLANTED.get() == Some(fault)
}

/// Plants a fault in this thread, or none.
pub(super) fn plant(fault: Option<Planted>) {
    PLANTED.set(fault);
}
