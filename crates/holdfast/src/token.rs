//! `holdfast token ...`

use holdfast_api::CreateToken;
use jiff::Timestamp;

use crate::{
    cli::{Global, TokenCommand},
    connect, output,
};

pub async fn run(global: &Global, command: TokenCommand) -> anyhow::Result<()> {
    let client = connect::client(global)?;
    match command {
        TokenCommand::Create { owner, name, admin, days } => {
            let body = CreateToken { owner, name, admin, expires_in_days: days };
            let made = client.create_token(&body).await?;
            if global.json {
                return output::json(&made);
            }
            println!("{}", made.secret);
            eprintln!(
                "This is shown once. Its id is {}; revoke it with `holdfast token revoke {0}`.\nFirst visit: {}/?token={}",
                made.token.id,
                client.base(),
                made.secret
            );
        }
        TokenCommand::Ls => {
            let list = client.tokens().await?;
            if global.json {
                return output::json(&list);
            }
            let mut table = output::table(&["ID", "OWNER", "NAME", "RIGHTS", "AGE", "STATE"]);
            for token in &list.tokens {
                let state = match (token.revoked_at, token.expires_at) {
                    (Some(_), _) => "revoked".to_owned(),
                    (None, Some(at)) if at <= Timestamp::now() => "expired".to_owned(),
                    (None, Some(at)) => format!("until {}", output::time(at)),
                    (None, None) => "valid".to_owned(),
                };
                table.add_row([
                    token.id.to_string(),
                    token.owner.clone(),
                    token.name.clone(),
                    if token.admin { "administrator" } else { "owner" }.to_owned(),
                    output::ago(token.created_at),
                    state,
                ]);
            }
            output::print_table(&table, "There are no tokens.");
        }
        TokenCommand::Revoke { id } => {
            client.revoke_token(id).await?;
            eprintln!("{id} is revoked.");
        }
    }
    Ok(())
}
