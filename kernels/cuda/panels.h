// Where a product finds a panel of a frozen weight: as it is stored, in the resident decoded base, decoded
// into the workspace, or into one of two tiles while the product before runs (DecodeAhead).
//
// A panel is whole rows going forward and whole columns going back, of all the group's weights one below the
// other, so that no sum is ever cut. Which panels there are depends on shapes alone; where one is found
// changes no bit.
#pragma once

#include "kernels/cuda/device.h"

namespace nibble::kernels::NIBBLE_CUDA {

// Weights of equal width, one below the other.
struct Stack {
  WeightView w[kMostGrouped];
  int count = 0;
  int64_t n = 0;  // rows of all
  int64_t k = 0;
};
inline Stack StackOf(const WeightView* w, int count) {
  Stack stack;
  stack.count = count;
  stack.k = w->k;
  for (int i = 0; i < count; ++i) {
    stack.w[i] = w[i];
    stack.n += w[i].n;
  }
  return stack;
}

// The stack as act [n, k] in one piece, or null. `stored`: it is the weights themselves, not what was decoded
// of them.
template <typename Act>
const Act* WholeStack(const Stack& stack, bool* stored);

// Rows, or going back columns, of a panel; the last may have fewer.
int64_t PanelStep(const Stack& stack, bool backward);

// Rows, or columns, first .. first+count-1, decoded: act [count, k], or [n, count]. Into `panel` where the
// context does not decode ahead. With that, what is read next is begun: the stack's next panel, or what the
// context says. So call it right before the product.
template <typename Act>
const Act* TakePanel(Context* ctx, const Stack& stack, bool backward, int64_t first, int64_t count,
                     Act* panel);

// In place of TakePanel where a layer needs no panel: what was begun for it is waited for and forgotten, so
// that nothing is on its way to a tile behind the last layer.
void LeavePanel(Context* ctx);

}  // namespace nibble::kernels::NIBBLE_CUDA
