// What fused_sgd's plan and kernels share.
#pragma once
#include "espalier/cuda/fused_sgd.h"
#include "fused_step_table.h"
