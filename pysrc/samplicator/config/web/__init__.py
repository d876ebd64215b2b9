"""The web-config file of Prometheus's exporter-toolkit: TLS, passwords and headers of the HTTP interface."""
