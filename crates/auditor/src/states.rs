//! What each state of an order demands of the rest of the books: one table.

use chipbound_wire::api::OrderState;

/// What became of an order's holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Holds {
    /// There is none.
    None,
    /// All were given back, if there are any.
    GivenBack,
    /// The last one stands, those before were given back.
    Open,
    /// The last one was captured, those before were given back.
    Captured,
}

/// What a state demands; where it says nothing, either may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Demand {
    /// What became of the holds.
    pub(crate) holds: Holds,
    /// Whether the capture was refunded.
    pub(crate) refunded: bool,
    /// Whether an acknowledgement is on record with the order.
    pub(crate) acknowledged: Option<bool>,
    /// Whether the capture was asked for on record.
    pub(crate) requested: Option<bool>,
    /// Whether a package was sent whole.
    pub(crate) delivered: Option<bool>,
    /// Whether a release token was made.
    pub(crate) token: Option<bool>,
}

/// The table of docs/ledger.md. What was paid before acknowledgements were kept with their orders has none: those states allow both. An
/// order that a card was to pay may run out late, when the provider gave its hold back before the capture.
pub(crate) fn demand(state: OrderState, by_card: bool) -> Demand {
    use OrderState as S;
    let open =
        Demand { holds: Holds::Open, refunded: false, acknowledged: Some(false), requested: Some(false), delivered: None, token: None };
    let paid = Demand { holds: Holds::Captured, refunded: false, acknowledged: None, requested: None, delivered: Some(true), token: None };
    match state {
        S::Confirmed => Demand { holds: Holds::None, delivered: Some(false), ..open },
        S::Authorised => Demand { delivered: Some(false), ..open },
        S::Delivering => open,
        S::Acknowledged => Demand { acknowledged: Some(true), delivered: Some(true), ..open },
        S::CaptureRequested => Demand { acknowledged: Some(true), requested: Some(true), delivered: Some(true), ..open },
        S::Captured => paid,
        S::Released => Demand { token: Some(true), ..paid },
        S::Refunded => Demand { refunded: true, ..paid },
        S::Cancelled => Demand { holds: Holds::GivenBack, delivered: Some(false), ..open },
        S::Expired if by_card => Demand { holds: Holds::GivenBack, acknowledged: None, requested: None, ..open },
        S::Expired => Demand { holds: Holds::GivenBack, ..open },
    }
}
