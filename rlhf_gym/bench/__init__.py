"""Benchmarks: suites of tasks and agents, a runner whose results are kept, statistics that hold for few seeds, and a report.

:func:`~rlhf_gym.bench.suite.load_suite` reads a suite, :func:`~rlhf_gym.bench.runner.run_suite` runs it, and
:func:`~rlhf_gym.bench.report_folder.write_bench_report` reports on the results.
"""
