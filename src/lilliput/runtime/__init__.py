# SPDX-License-Identifier: Apache-2.0
"""Running a model: program -> native engine, sampling, generation, speed. Needs numpy and the native core alone."""
