"""The on-disk metadata of one replicated volume, format v08: where it lies and what its bytes mean.

Pure: nothing below reads or writes a device. Bytes come in, values go out, and back; the files
and block devices are `replicator.runtime.metadata_files`' business.
"""
