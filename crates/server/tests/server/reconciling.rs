//! What the card provider holds or took for orders that restored books do not know, by the operator's verb.

use crate::backup::{refused, restore, settle, text, verb};
use crate::daemon::{Daemon, Installation, buy_by, log_in, place, receive};
use crate::processor::Processor;
use crate::world::sample;
use chipbound_host::files::write_new;
use chipbound_testkit::cards::{API_KEY, CardSimulator, Status};
use chipbound_transport::Client;
use chipbound_wire::api::*;
use chipbound_wire::suite::KeyMode;
use chipbound_wire::{Code, OrderId};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const CARD: &str = "pm_card_visa";

/// The server of that configuration takes cards, by this provider.
fn takes_cards(config: &Path, bank: &CardSimulator) {
    write_new(&config.with_file_name("card.key"), API_KEY.as_bytes(), 0o600).unwrap();
    write_new(&config.with_file_name("card.pem"), bank.root_pem().as_bytes(), 0o644).unwrap();
    let section = format!("\n[payment.cards]\nurl = \"{}\"\nkey_file = \"card.key\"\ntls_root = \"card.pem\"\n", bank.url());
    std::fs::OpenOptions::new().append(true).open(config).unwrap().write_all(section.as_bytes()).unwrap();
}

async fn by_card(client: &Client, user: &str, order: &Order) -> Order {
    buy_by(client, user, order, Payment::Card(CARD.to_owned())).await.unwrap()
}

/// An order that a card paid, to its end.
async fn paid(client: &Client, processor: &Arc<Processor>) -> OrderId {
    let ann = log_in(client, "ann").await;
    let order = by_card(client, &ann, &place(client, &ann, processor.id(), Some(KeyMode::Direct)).await).await;
    let acknowledgement = receive(client, &ann, &order, processor).await.unwrap();
    settle(client, &ann, order.order, acknowledgement).await.unwrap();
    order.order
}

/// The lines about payments that are not known, as words.
fn unknown(said: &str, order: OrderId) -> Vec<&str> {
    let line = said.lines().find(|line| line.starts_with(&order.to_string())).unwrap_or_else(|| panic!("{order} is not listed: {said}"));
    line.split("  ").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cards_paid_after_a_backup_is_found_in_the_restored_books_and_given_back_by_name() {
    let (installation, bank) = (Installation::new().await, CardSimulator::start().await);
    takes_cards(&installation.config, &bank);
    let shop = installation.config.parent().unwrap().to_owned();
    let daemon = installation.start().await;
    let client = installation.client(&daemon);
    installation.publish(&client, &sample(300_000)).await;
    let processor = installation.processor().await;
    let before = paid(&client, &processor).await;
    let ann = log_in(&client, "ann").await;
    let waiting = place(&client, &ann, processor.id(), None).await;
    let backup = shop.join("backup");
    verb(&["backup", "--config", text(&installation.config), text(&backup)]).await.unwrap();

    // After it: one taken, one held, one taken and given back, one agreed to that the backup has, one that was declined.
    let taken = paid(&client, &processor).await;
    let held = by_card(&client, &ann, &place(&client, &ann, processor.id(), None).await).await.order;
    let refunded = paid(&client, &processor).await;
    by_card(&client, &ann, &waiting).await;
    let declined = place(&client, &ann, processor.id(), None).await;
    let no = buy_by(&client, &ann, &declined, Payment::Card("pm_card_chargeDeclined".to_owned())).await;
    assert_eq!(no.unwrap_err().code, Code::PaymentDeclined);
    let known = verb(&["reconcile", "--config", text(&installation.config)]).await.unwrap();
    assert!(known.ends_with("payments compared, 0 not known here, 0 differ\n"), "{known}");
    let of = |order: OrderId| bank.payments().into_iter().find(|p| p.order == order.to_string()).unwrap();
    verb(&["account", "refund", "--config", text(&installation.config), "--order", &refunded.to_string()]).await.unwrap();
    while of(refunded).refunded == 0 {
        tokio::time::sleep(Duration::from_millis(50)).await; // The server has the provider give it back.
    }
    drop(daemon);

    let config = installation.second(None).await;
    takes_cards(&config, &bank);
    restore(&config, &shop.join("kek"), &backup).await.unwrap();
    let reconcile = ["reconcile", "--config", text(&config)];
    let said = verb(&reconcile).await.unwrap();
    assert!(said.ends_with("1 payments compared, 3 not known here, 0 differ\n"), "{said}");
    for (order, standing, here) in
        [(taken, "captured", "no such order"), (held, "held", "no such order"), (waiting.order, "held", "the order without it")]
    {
        let reference = of(order).id;
        let there = format!("there: {standing}");
        assert_eq!(unknown(&said, order)[1..], [&*reference, "2.50 EUR", &*there, &*format!("here: {here}")]);
    }

    // Nothing is given back but what is named and not known here.
    for other in ["pi_3Nothing", &of(before).id, &of(refunded).id] {
        refused(&[&reconcile[..], &["--give-back", other]].concat(), Code::NotFound).await;
    }
    assert_eq!((of(before).refunded, of(taken).refunded, of(held).status), (0, 0, Status::RequiresCapture));
    let ids = [of(taken).id, of(held).id];
    let give_back = [&reconcile[..], &["--give-back", &ids[0], "--give-back", &ids[1]]].concat();
    let said = verb(&give_back).await.unwrap();
    assert!(said.contains(&format!("{} is given back", of(taken).id)), "{said}");
    assert_eq!((of(taken).refunded, of(held).status, of(before).refunded), (250, Status::Canceled, 0));
    refused(&give_back, Code::NotFound).await;
    assert_eq!(of(taken).refunded, 250, "once");

    // What the backup's own order lost is taken up when its customer agrees again.
    let daemon = Daemon::start_with(&config, &installation.log()).await;
    let client = installation.client_of(&config, &daemon);
    let (ann, payments) = (log_in(&client, "ann").await, bank.payments().len());
    assert_eq!(by_card(&client, &ann, &waiting).await.state, OrderState::Authorised);
    assert_eq!(bank.payments().len(), payments, "the same payment");
    let said = verb(&reconcile).await.unwrap();
    assert!(said.ends_with("2 payments compared, 0 not known here, 0 differ\n"), "{said}");
    verb(&["audit", "--config", text(&config)]).await.unwrap();
}
