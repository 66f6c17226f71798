"""Doing the runs of a sweep several at a time: processes of this machine, or a Ray cluster.

=====================  ================================================================================
:mod:`.events`         what a worker tells the driver
:mod:`.bench`          what a worker does: one run after the other, with its data set open
:mod:`.crew`           what the driver does: runs out, outcomes in, whatever becomes of the workers (:mod:`.agenda`)
:mod:`.local`          workers that are processes of this machine (:mod:`.process`: one of them)
:mod:`.budget`         how many of them the cores, the memory and the GPUs of this machine carry
:mod:`.cluster`        workers that are Ray actors (:mod:`.remote`: one of them, seen from here; :mod:`.actor`: there)
:mod:`.connection`     finding a cluster, or starting Ray here
:mod:`.exchange`       runs that travel through an object store, where nodes share no disk
=====================  ================================================================================
"""
