"""Where figures come from: servers' and DCGM's pages, a Prometheus server, this machine's GPUs, CPU and memory."""
