//! What an order is, and how one is read from a line of the file.
//!
//! Each line stands for itself: a line that cannot be read costs one order, never the ones behind
//! it. So a field may hold a comma or a doubled quote, but no line break.

use std::{collections::BTreeMap, fmt, fs, path::Path, str::FromStr};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

/// The first line of every orders file.
pub(crate) const HEADER: &str = "order_id,customer,email,address,country,sku,item,quantity,amount,card,\
                                 stock_fails,payment_fails,replies_lost,carrier_fails,email_fails";

/// One order. Everything that will go wrong with it stands in it, so a run of the file can be
/// repeated: nothing here is left to chance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) id: String,
    pub(crate) customer: String,
    pub(crate) email: String,
    pub(crate) address: String,
    pub(crate) country: String,
    pub(crate) sku: String,
    pub(crate) item: String,
    pub(crate) quantity: u32,
    pub(crate) amount: Cents,
    /// The card's token. One that begins with `tok_declined_` is declined, for the reason behind.
    pub(crate) card: String,
    pub(crate) faults: Faults,
}

/// How often each service lets this order down before it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Faults {
    /// The warehouse does not answer so often.
    pub(crate) stock: u32,
    /// The payment service refuses to work so often.
    pub(crate) payment: u32,
    /// The payment service does its work so often, and the answer is lost.
    pub(crate) replies_lost: u32,
    /// The carrier does not answer so often.
    pub(crate) carrier: u32,
    /// The mail server does not answer so often.
    pub(crate) email: u32,
}

/// An amount of money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Cents(pub(crate) i64);

impl FromStr for Cents {
    type Err = String;

    /// Reads euros and two digits of cents: `19.99`. No sign, no exponent, no thousands separator.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is not an amount such as 19.99");
        let (euros, cents) = text.split_once('.').ok_or_else(bad)?;
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if euros.is_empty()
            || euros.len() > 9
            || cents.len() != 2
            || !digits(euros)
            || !digits(cents)
        {
            return Err(bad());
        }
        let number = |part: &str| part.parse::<i64>().map_err(|_| bad());
        match number(euros)? * 100 + number(cents)? {
            0 => Err("the amount is zero".to_owned()),
            cents => Ok(Self(cents)),
        }
    }
}

impl fmt::Display for Cents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

/// A line of the file: an order, or why it is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// As an editor counts: the header is line 1.
    pub(crate) number: u32,
    pub(crate) text: String,
    pub(crate) order: Result<Order, String>,
}

/// An orders file, read whole. Blank lines are left out: they are nobody's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OrdersFile {
    pub(crate) lines: Vec<Line>,
}

impl OrdersFile {
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&bytes).with_context(|| format!("{} is no orders file", path.display()))
    }

    /// # Errors
    /// If the header is not the expected one: then no line would mean what it says.
    pub(crate) fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let mut lines = (1_u32..)
            .zip(bytes.split(|byte| *byte == b'\n'))
            .map(|(number, line)| (number, line.strip_suffix(b"\r").unwrap_or(line)));
        let header = lines.next().map(|(_, line)| String::from_utf8_lossy(line));
        ensure!(header.as_deref() == Some(HEADER), "its first line is not `{HEADER}`");
        let lines = lines
            .filter(|(_, line)| !line.trim_ascii().is_empty())
            .map(|(number, line)| Line {
                number,
                text: String::from_utf8_lossy(line).into_owned(),
                order: parse_line(line),
            })
            .collect();
        Ok(Self { lines })
    }

    /// For each order id, the line whose order it is: the first that can be read.
    pub(crate) fn owners(&self) -> BTreeMap<&str, u32> {
        let mut owners = BTreeMap::new();
        for line in &self.lines {
            if let Ok(order) = &line.order {
                owners.entry(order.id.as_str()).or_insert(line.number);
            }
        }
        owners
    }
}

fn parse_line(line: &[u8]) -> Result<Order, String> {
    let text = std::str::from_utf8(line).map_err(|_| "it is not UTF-8".to_owned())?;
    if text.matches('"').count() % 2 == 1 {
        return Err("a quote is not closed".to_owned());
    }
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(line);
    let mut fields = csv::StringRecord::new();
    reader.read_record(&mut fields).map_err(|error| error.to_string())?;
    let columns: Vec<&str> = HEADER.split(',').collect();
    if fields.len() != columns.len() {
        let what = if fields.len() < columns.len() { "missing" } else { "extra" };
        return Err(format!("{what} columns: {} instead of {}", fields.len(), columns.len()));
    }
    let field = |name: &str| {
        let value = columns.iter().position(|column| *column == name).and_then(|i| fields.get(i));
        value.expect("the names are those of the header, and the fields are as many")
    };
    let text = |name: &str| match field(name) {
        "" => Err(format!("no {name}")),
        value if value.len() > 200 => Err(format!("{name} is longer than 200 bytes")),
        value if value.contains(char::is_control) => Err(format!("{name} has control characters")),
        value => Ok(value.to_owned()),
    };
    let fails = |name: &str| match field(name) {
        "" => Ok(0),
        value => value.parse().map_err(|_| format!("{name}: `{value}` is not a number")),
    };
    let email = text("email")?;
    if !email.split_once('@').is_some_and(|(user, host)| !user.is_empty() && host.contains('.')) {
        return Err(format!("`{email}` is not an e-mail address"));
    }
    Ok(Order {
        id: text("order_id")?,
        customer: text("customer")?,
        email,
        address: text("address")?,
        country: text("country")?,
        sku: text("sku")?,
        item: text("item")?,
        quantity: match field("quantity").parse() {
            Ok(0) | Err(_) => return Err(format!("`{}` is not a quantity", field("quantity"))),
            Ok(quantity) => quantity,
        },
        amount: field("amount").parse()?,
        card: text("card")?,
        faults: Faults {
            stock: fails("stock_fails")?,
            payment: fails("payment_fails")?,
            replies_lost: fails("replies_lost")?,
            carrier: fails("carrier_fails")?,
            email: fails("email_fails")?,
        },
    })
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    pub(crate) const GOOD: &str = r#"W-1,Zoë Brontë,zoe@example.org,"12 Rue de l'Église, Lyon",FR,MUG-0301,"Mug ""Best Dad"", 0.4 l",2,25.80,tok_visa,,2,1,,"#;

    pub(crate) fn file(lines: &[&str]) -> OrdersFile {
        OrdersFile::parse(format!("{HEADER}\n{}\n", lines.join("\n")).as_bytes()).unwrap()
    }

    fn reason(line: &str) -> String {
        file(&[line]).lines[0].order.clone().unwrap_err()
    }

    #[test]
    fn a_line_may_have_commas_quotes_and_any_language() {
        let file = file(&[GOOD]);
        let order = file.lines[0].order.as_ref().unwrap();
        assert_eq!(order.customer, "Zoë Brontë");
        assert_eq!(order.address, "12 Rue de l'Église, Lyon");
        assert_eq!(order.item, r#"Mug "Best Dad", 0.4 l"#);
        assert_eq!((order.quantity, order.amount), (2, Cents(2580)));
        let faults = Faults { payment: 2, replies_lost: 1, ..Faults::default() };
        assert_eq!(order.faults, faults);
    }

    #[test]
    fn a_malformed_line_says_why() {
        let with = |from: &str, to: &str| reason(&GOOD.replace(from, to));
        assert_eq!(reason("W-1,Zoë"), "missing columns: 2 instead of 15");
        assert_eq!(reason(&format!("{GOOD},gift")), "extra columns: 16 instead of 15");
        assert_eq!(with("W-1", " "), "no order_id");
        assert_eq!(with("zoe@", "zoe at "), "`zoe at example.org` is not an e-mail address");
        assert_eq!(with(",2,25.80", ",0,25.80"), "`0` is not a quantity");
        assert_eq!(with(",2,25.80", ",-2,25.80"), "`-2` is not a quantity");
        assert_eq!(
            with("tok_visa,,2", "tok_visa,,often"),
            "payment_fails: `often` is not a number"
        );
        assert_eq!(with("\"12 Rue", "12 Rue"), "a quote is not closed");
        assert_eq!(with("Zoë", "Z\0"), "customer has control characters");
        assert!(with("Zoë", &"Zoë".repeat(99)).contains("longer than 200 bytes"));
    }

    #[test]
    fn an_amount_has_two_digits_of_cents_and_no_sign() {
        for bad in ["", "12,50", "-20.00", "+1.00", "twelve", "19.999", "19.9", "1e3", "NaN", ".50"]
        {
            let error = bad.parse::<Cents>().unwrap_err();
            assert_eq!(error, format!("`{bad}` is not an amount such as 19.99"));
        }
        assert_eq!("0.00".parse::<Cents>().unwrap_err(), "the amount is zero");
        assert!("99999999999.00".parse::<Cents>().is_err());
        assert_eq!("0.01".parse(), Ok(Cents(1)));
        assert_eq!(Cents(1905).to_string(), "19.05");
    }

    #[test]
    fn a_bad_line_costs_one_order_and_no_line_number() {
        let mut bytes = format!("\u{feff}{HEADER}\r\n\"never closed,\r\n\r\n").into_bytes();
        bytes.extend(b"W-9,Zo\xeb\n");
        bytes.extend(GOOD.as_bytes()); // and no line break at the end
        let file = OrdersFile::parse(&bytes).unwrap();
        let orders: Vec<_> =
            file.lines.iter().map(|line| (line.number, line.order.is_ok())).collect();
        assert_eq!(orders, [(2, false), (4, false), (5, true)]);
        assert_eq!(file.lines[1].order, Err("it is not UTF-8".to_owned()));
    }

    #[test]
    fn an_order_id_belongs_to_the_first_line_that_can_be_read() {
        let malformed = GOOD.replace("25.80", "lots");
        let file = file(&[&malformed, GOOD, GOOD, &GOOD.replace("W-1", "W-2")]);
        assert_eq!(file.owners(), BTreeMap::from([("W-1", 3), ("W-2", 5)]));
    }

    #[test]
    fn a_file_with_another_header_is_refused() {
        for text in ["", "id,name\n1,Zoë\n", &HEADER.replace("sku", "SKU")] {
            assert!(OrdersFile::parse(text.as_bytes()).is_err());
        }
    }

    /// The demo and its documentation speak about this file.
    #[test]
    fn the_shipped_file_has_a_thousand_lines_with_every_kind_of_trouble() {
        let file = OrdersFile::parse(include_bytes!("../orders.csv")).unwrap();
        assert_eq!(file.lines.len(), 1_000);
        let malformed: Vec<_> = file
            .lines
            .iter()
            .filter_map(|line| Some((line.number, line.order.as_ref().err()?.as_str())))
            .collect();
        assert_eq!(malformed.len(), 14, "{malformed:#?}");
        for (reason, count) in [
            ("is not an amount", 5),
            ("the amount is zero", 1),
            ("missing columns", 3),
            ("extra columns", 2),
            ("is not a quantity", 1),
            ("is not an e-mail address", 1),
            ("a quote is not closed", 1),
        ] {
            let found = malformed.iter().filter(|(_, text)| text.contains(reason)).count();
            assert_eq!(found, count, "{reason}");
        }
        let orders: Vec<_> =
            file.lines.iter().filter_map(|line| line.order.as_ref().ok()).collect();
        assert_eq!(orders.len() - file.owners().len(), 9, "lines whose order id came before");
        let count = |matches: fn(&Order) -> bool| orders.iter().filter(|o| matches(o)).count();
        assert!(count(|order| order.card.starts_with("tok_declined_")) >= 30);
        assert!(count(|order| order.faults.payment > 0) >= 50);
        assert!(count(|order| order.faults.replies_lost > 0) >= 20);
        assert!(count(|order| order.faults.carrier == 99) >= 5, "carriers that never answer");
        assert!(count(|order| !order.customer.is_ascii()) >= 300);
        assert!(count(|order| order.item.contains('"')) >= 50);
    }
}
