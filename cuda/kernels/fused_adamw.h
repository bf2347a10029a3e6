// What fused_adamw's plan and kernels share.
#pragma once
#include "espalier/cuda/fused_adamw.h"
#include "fused_step_table.h"
