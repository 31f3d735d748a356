// step.lua, as it is built in.
#ifndef GRADCLIP_SERVER_GROUP_REDIS_SCRIPT_H_
#define GRADCLIP_SERVER_GROUP_REDIS_SCRIPT_H_

#include <string>

namespace gradclip {

struct RedisScript {
  // Refused by a Redis that has reached its maxmemory, and run by one that has all the same.
  static const RedisScript& WhereThereIsMemory();
  static const RedisScript& Always();

  std::string text;
  std::string sha1;  // in hexadecimal: what Redis knows it by, once it has seen it
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_GROUP_REDIS_SCRIPT_H_
