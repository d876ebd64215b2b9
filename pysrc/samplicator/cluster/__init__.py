"""The cluster that this process runs in, if it runs in one: the pods behind a Kubernetes Service.

What asks the cluster's API server enters here, in threads of its own. What is done with the answers belongs to plan.
May import: config, plan.
"""
