"""Networks in plain torch, by their kinds; `families.plain_table` lists them."""
