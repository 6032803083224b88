//! API tokens, for programs that use a server in the name of an account.

use super::{logged_in, parsed};
use crate::cli::Common;
use crate::home::Home;
use crate::output::Output;
use crate::receipts::moment;
use chipbound_host::files::write_durably;
use chipbound_wire::api::{NewToken, Scope};
use chipbound_wire::{Code, Refusal, Result};
use clap::Subcommand;
use serde_json::json;
use std::path::PathBuf;
use zeroize::Zeroizing;

/// What is done with API tokens. All of it needs a log-in with the password.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Make an API token; it is written to a file of mode 0600 and shown nowhere
    #[command(after_help = "Example:\n  chipbound token create build-server --scope read --scope buy --days 30 -o build.token")]
    Create {
        /// Its name within the account
        name: String,
        /// What it lets do: read, buy, publish, operate, audit; may be repeated
        #[arg(long = "scope", value_name = "SCOPE", required = true, value_parser = parsed::<Scope>)]
        scopes: Vec<Scope>,
        /// For how many days it counts, at most 366
        #[arg(long, default_value_t = 90)]
        days: u32,
        /// The file, which must not be there yet
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// List the account's API tokens
    #[command(after_help = "Example:\n  chipbound token list")]
    List,
    /// Revoke an API token: it counts for nothing from now on
    #[command(after_help = "Example:\n  chipbound token revoke build-server")]
    Revoke {
        /// Its name
        name: String,
    },
}

/// Does a verb.
pub async fn execute(verb: Verb, common: &Common, output: &Output) -> Result<()> {
    let home = Home::locate(common.home.as_deref())?;
    let (session, api) = logged_in(&home)?;
    match verb {
        Verb::Create { name, scopes, days, output: file } => {
            if file.exists() {
                return Err(Refusal::new(Code::Conflict, format!("{} is there already", file.display())));
            }
            let made = api.make_token(&NewToken { name: name.clone(), scopes, days }).await?;
            let text = Zeroizing::new(format!("{}\n", made.token).into_bytes());
            if let Err(refusal) = write_durably(&file, &text, 0o600) {
                api.revoke_token(&name).await?; // Nobody has it.
                return Err(refusal);
            }
            let until = moment(made.expires_at);
            let value = json!({ "token": name, "file": file.display().to_string(), "expires_at": made.expires_at });
            output.result(format!("{}: the API token {name} of {}, until {until}", file.display(), session.user), &value);
        }
        Verb::List => {
            let tokens = api.tokens().await?.tokens;
            let row = |t: &chipbound_wire::api::TokenInfo| {
                let scopes: Vec<_> = t.scopes.iter().map(|s| s.as_str()).collect();
                vec![t.name.clone(), scopes.join(" "), moment(t.created_at), moment(t.expires_at)]
            };
            let rows: Vec<_> = tokens.iter().map(row).collect();
            let values: Vec<_> = tokens.iter().map(|t| json!(t)).collect();
            output.table(&["NAME", "SCOPES", "MADE", "UNTIL"], &rows, &values);
        }
        Verb::Revoke { name } => {
            api.revoke_token(&name).await?;
            output.result(format!("the API token {name} counts for nothing any more"), &json!({ "revoked": name }));
        }
    }
    Ok(())
}
