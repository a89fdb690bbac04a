"""The re-evaluation of every night: figures, alarms, baselines, pages."""
