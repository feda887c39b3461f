"""Stands in for AMD's binding in the processes that Ray starts where there is no ROCm."""

raise ImportError("amdsmi is set aside: there is no ROCm here")
