"""The web page on which people label, the page for those who look after it, and the database behind both."""
