//! What must hold of the books: one table.

use std::fmt;

macro_rules! rules {
    ($($variant:ident = $name:literal, $claim:literal, $advice:literal;)+) => {
        /// Something that must hold. Names are stable: programs may match on them.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Rule {
            $(
                #[doc = $claim]
                $variant,
            )+
        }

        impl Rule {
            /// Every rule.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The stable name.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// What must hold.
            #[must_use]
            pub fn claim(self) -> &'static str {
                match self { $(Self::$variant => $claim),+ }
            }

            /// What to do where it does not, one sentence.
            #[must_use]
            pub fn advice(self) -> &'static str {
                match self { $(Self::$variant => $advice),+ }
            }
        }
    };
}

rules! {
    EntrySum = "entry-sum", "An entry has postings, and they sum to zero in each currency.",
        "Somebody changed the ledger past its triggers: compare with a backup.";
    EntryShape = "entry-shape", "The postings of an entry are those of its kind, for its order's parties and price.",
        "Somebody changed the ledger past its triggers: compare with a backup.";
    EntryRound = "entry-round", "An order's holds are numbered from 1; each ends once, by a release or the one capture, which is refunded at most once.",
        "Compare the order's entries with a backup; a price that was taken twice goes back by an entry of the operator's.";
    EntryKnown = "entry-known", "The order and the accounts that an entry names are there, and so is the entry of each posting.",
        "Rows were removed past the database's constraints: restore a backup.";
    BalanceNegative = "balance-negative", "No entry leaves what a customer has, free or held, below zero.",
        "Compare the account's entries with a backup: money was spent that was not there.";
    BalanceDerived = "balance-derived", "What the books say that a book comes to is the sum of its postings.",
        "Purchases are decided by these balances: stop the server and write them anew from the postings.";
    PayoutCovered = "payout-covered", "No payout is more than what was earned and not paid yet.",
        "Compare the payouts with the bank's; ask the vendor for what was too much.";
    RefundMirrors = "refund-mirrors", "A refund gives back what was captured, all of it, from where it went to where it came from.",
        "Compare the order's entries with a backup.";
    OrderState = "order-state", "An order has the entries, acknowledgement, deliveries and receipt that its state demands, and no others.",
        "Start the server, which drives on what was interrupted; if it repeats, compare the order with a backup.";
    OrderConfirmation = "order-confirmation", "An order is what its signed confirmation says.",
        "The customer agreed to the confirmation, not to this row: restore the row from a backup.";
    OrderAcknowledgement = "order-acknowledgement", "An order's acknowledgement is signed by its processor and about a delivery of this order.",
        "The price was taken without the processor's word: ask the customer, and refund if nothing arrived.";
    OrderProcessor = "order-processor", "Signed transfers lead from the processor of the confirmation to the order's.",
        "Restore the order's processor from a backup: nothing but a transfer may change it.";
    HoldTerm = "hold-term", "No hold begins or stands after its time.",
        "Start the server: it gives back what ran out and drives on what was acknowledged.";
    TokenUnpaid = "token-unpaid", "No release token without a capture.",
        "The program was given away: find out how, and compare the order with a backup.";
    CardPayment = "card-payment", "What the ledger says of an order's card is what the provider confirmed: held, captured, given back.",
        "Compare with the provider's own book (chipbound server reconcile), and give back by hand what it took and the ledger does not know.";
    ReceiptOfCapture = "receipt-of-capture", "Each capture has exactly one receipt, and each receipt a capture.",
        "Restore the receipt from a backup, or from its owner, who can show it.";
    ReceiptNumber = "receipt-number", "A seller's receipts are numbered 1, 2, 3 …, as many as the seller's count says.",
        "A receipt is missing or was added: compare with a backup and with the log.";
    ReceiptSignature = "receipt-signature", "A receipt is signed by a receipt key that was certified at the time.",
        "The receipt was changed after it was signed, or signed by somebody else: restore it from a backup.";
    ReceiptContent = "receipt-content", "A receipt says what its order, its capture and its row say.",
        "Compare the order and the receipt with a backup; the owner's copy of the receipt counts.";
    ReceiptAmount = "receipt-amount", "A receipt is about the amount that was captured.",
        "Refund what was taken beyond the receipt.";
    ReceiptTax = "receipt-tax", "A receipt's tax lines are computed by their rates, and sum to what was posted as tax.",
        "Correct the tax return of that period by the difference.";
    HouseShare = "house-share", "The house's share of a capture is computed by the rate that stands with it.",
        "Pay the vendor the difference, or take it from the next payout, and compare the rate with what was agreed.";
    LogEntry = "log-entry", "A receipt's entry in the log is the commitment to it, and each entry belongs to one receipt.",
        "A receipt was changed, removed or hidden after it was entered: restore it from a backup.";
    LogTree = "log-tree", "Entries follow each other without a gap, and the tree's kept nodes and edge are those of the entries.",
        "Rows of the log were changed past their triggers: restore a backup.";
    LogCheckpoint = "log-checkpoint", "Each checkpoint is signed by a key that this server's receipt key named, and is the tree of that size.",
        "The log was rewritten: customers who kept the checkpoint can show it; restore a backup.";
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
