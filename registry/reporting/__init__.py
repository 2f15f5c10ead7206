"""The report: a registry as one HTML page that needs no network, no server and no script.

``collecting`` asks the catalog and the runs' histories, ``heatmap``, ``bars``, ``scatter`` and ``movements`` compute
where everything goes, ``page`` fills the templates. None of it needs torch.
"""
